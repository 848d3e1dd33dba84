// Times the products of a layer on a device, with weights that are cold in every cache, queued as
// one recording: each matrix alone and the four of a layer in a chain, beside pure reads of the
// same bytes in the same run. A JSON line a case, and a table at the end.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "backends/memory.h"
#include "bench/device_read.h"
#include "bench/json_lines.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "formats/linear.h"

namespace {

using namespace stepladder;

constexpr const char* kUsage =
    "usage: stepladder-device-bench [--device=cuda:0] [--model=1b|8b|70b] [--formats=LIST] "
    "[--rows=LIST]\n"
    "                               [--megabytes=N] [--samples=N]\n"
    "\n"
    "Times the four products of a layer on weights that are cold in every cache, beside pure reads "
    "of\n"
    "the same bytes. --megabytes (2048) is what a recording reads at least; the median of "
    "--samples (9).\n";

struct Options {
  std::string device = "cuda:0", model = "8b", formats = "dense,w4a16,w8a16,mxfp4",
              rows = "1,8,16,32,64";
  size_t megabytes = 2048;
  int samples = 9;
};

struct Shape {
  const char* name;
  int n, k;
};
std::vector<Shape> shapes(const std::string& model) {
  if (model == "1b")
    return {{"qkv", 3072, 2048}, {"o", 2048, 2048}, {"gate_up", 16384, 2048}, {"down", 2048, 8192}};
  if (model == "8b")
    return {
        {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
  if (model == "70b")
    return {
        {"qkv", 10240, 8192}, {"o", 8192, 8192}, {"gate_up", 57344, 8192}, {"down", 8192, 28672}};
  fail(Code::invalid_argument, "bench: --model=", model, "; there are 1b, 8b and 70b");
}

std::vector<std::string> words(const std::string& list) {
  std::vector<std::string> out;
  for (size_t at = 0; at <= list.size();) {
    const size_t comma = std::min(list.find(',', at), list.size());
    out.push_back(list.substr(at, comma - at));
    at = comma + 1;
  }
  return out;
}

/// Copies of one random weight in a device's memory.
struct Matrix {
  Linear linear;
  Buffer memory;
  size_t stride = 0;
  int copies = 0;

  Matrix(Backend& backend, const WeightFormat& format, const Shape& shape, size_t bytes,
         ThreadPool& pool) {
    // Some rows of random values stand for all.
    constexpr int kRows = 128;
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, .02f);
    std::vector<float> values(size_t(kRows) * shape.k);
    for (float& v : values) v = normal(random);
    const CanonicalWeight some =
        format.cast(values, kRows, shape.k, format.groups.empty() ? 0 : format.groups.back());
    const Act act = Act::a16;
    linear = Linear(backend, some.desc, shape.n, shape.k, false, std::span(&act, 1));
    std::vector<std::byte> packed(linear.packed_bytes());
    Scratch scratch;
    const WeightRows rows = rows_of(some, scratch);
    pool.run([&](int part) {
      for (int first = part * kRows; first < shape.n; first += pool.threads() * kRows) {
        WeightRows piece = rows;
        piece.n = shape.n, piece.first = first, piece.count = std::min(kRows, shape.n - first);
        linear.pack(piece, packed.data());
      }
    });
    stride = (packed.size() + 255) / 256 * 256;
    copies = static_cast<int>(std::max<size_t>(2, (bytes + stride - 1) / stride));
    memory = allocate_buffer(backend, stride * copies);
    for (int i = 0; i < copies; ++i)
      backend.upload(memory.data() + stride * i, packed.data(), packed.size());
    backend.wait();
  }
  ProjectWeight copy(int i) {
    linear.place(memory.data() + stride * (i % copies));
    return linear.in(Act::a16);
  }
};

class Bench {
 public:
  explicit Bench(const Options& o)
      : o_(o), backend_(open_backend({.device = o.device})), pool_(0) {}

  void run() {
    const auto layer = shapes(o_.model);
    std::vector<int> rows;
    for (const std::string& r : words(o_.rows)) rows.push_back(std::atoi(r.c_str()));
    for (const int r : rows)
      check(r > 0 && r <= 4096, Code::invalid_argument, "bench: --rows takes 1 to 4096");
    int most = *std::max_element(rows.begin(), rows.end()), wide = 0, deep = 0;
    for (const Shape& s : layer) wide = std::max(wide, s.n), deep = std::max(deep, s.k);
    Buffer x = allocate_buffer(*backend_, size_t(most) * deep * 2),
           y = allocate_buffer(*backend_, size_t(most) * wide * 4);
    Buffer live = allocate_buffer(*backend_, 4);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> values(size_t(most) * deep);
    for (auto& v : values) v = to_bf16(normal(random));
    backend_->upload(x.data(), values.data(), x.bytes());
    backend_->wait();
    x_ = x.data(), y_ = y.data(), live_ = reinterpret_cast<int32_t*>(live.data());
    std::printf("%s, %s, us a product and its share of reading the same bytes\n",
                backend_->name().c_str(), o_.model.c_str());
    for (const std::string& name : words(o_.formats)) {
      std::vector<Matrix> matrices;
      for (const Shape& s : layer)
        matrices.emplace_back(*backend_, format_named(name), s, o_.megabytes << 20, pool_);
      for (size_t i = 0; i < layer.size(); ++i) report(name, layer[i].name, {&matrices[i]}, rows);
      std::vector<Matrix*> all;
      for (Matrix& m : matrices) all.push_back(&m);
      report(name, "layer", all, rows);
    }
  }

 private:
  /// Median microseconds of one product of each of the matrices, one after the other.
  double time(const std::vector<Matrix*>& matrices, int rows, const FastKernel* kernel) {
    int times = 0;
    for (const Matrix* m : matrices) times = std::max(times, m->copies);
    // A chain has enough bytes of the four together.
    if (matrices.size() > 1) times = std::max(2, matrices[1]->copies / 8);
    const int32_t live = rows;
    backend_->upload(live_, &live, 4);
    const auto recording = backend_->record([&] {
      for (int i = 0; i < times; ++i)
        for (Matrix* m : matrices) {
          ProjectArgs a{.live = {live_, nullptr, rows}};
          a.weight = m->copy(i);
          if (kernel) a.weight.kernel = kernel;
          a.input = {.x = {x_, DType::bf16, rows, m->linear.k()}, .type = DType::bf16};
          a.result = Store{{y_, DType::f32, rows, m->linear.n()}};
          backend_->project(a);
        }
    });
    std::vector<double> us;
    for (int i = 0; i < o_.samples + 2; ++i) {
      backend_->wait();
      recording->replay();
      backend_->wait();
      if (i >= 2) us.push_back(backend_->worked_ms().value() * 1e3 / times);
    }
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }

  void report(const std::string& format, const char* shape, const std::vector<Matrix*>& matrices,
              const std::vector<int>& rows) {
    size_t bytes = 0;
    for (Matrix* m : matrices) bytes += m->copy(0).packed.bytes;
    const double read = time(matrices, 1, &bench::kReadWeight);
    std::printf("%-6s %-8s %7.1f MB  read %7.2f us %5.2f TB/s |", format.c_str(), shape,
                bytes / 1e6, read, bytes / read / 1e6);
    for (const int r : rows) {
      const double us = time(matrices, r, nullptr);
      std::printf(" %d: %.2f (%.0f%%)", r, us, 100 * read / us);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  Options o_;
  std::unique_ptr<Backend> backend_;
  ThreadPool pool_;
  std::byte *x_ = nullptr, *y_ = nullptr;
  int32_t* live_ = nullptr;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i], name = arg.substr(0, arg.find('='));
    const std::string value =
        arg.find('=') == std::string::npos ? "" : arg.substr(arg.find('=') + 1);
    if (name == "--help" || name == "-h")
      std::printf("%s", kUsage), std::exit(0);
    else if (name == "--device")
      o.device = value;
    else if (name == "--model")
      o.model = value;
    else if (name == "--formats")
      o.formats = value;
    else if (name == "--rows")
      o.rows = value;
    else if (name == "--megabytes")
      o.megabytes = std::max(1, std::atoi(value.c_str()));
    else if (name == "--samples")
      o.samples = std::max(1, std::atoi(value.c_str()));
    else
      fail(Code::invalid_argument, "bench: ", arg, " is not known; --help lists the options");
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) try {
  Bench(parse(argc, argv)).run();
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
