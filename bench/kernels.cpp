// Times the linear kernels on weights that are cold in every cache, against the read bandwidth
// measured in the same run: a JSON line for each (shape, format, rows), and a table at the end.
// Options are read by hand, as in options.cpp and for its reason.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/kernels.h"
#include "bench/json_lines.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "formats/linear.h"

namespace {

using namespace stepladder;

constexpr const char* kUsage =
    "usage: stepladder-kernel-bench [options]\n"
    "\n"
    "Times the linear kernels on weights that are cold in every cache, against the read bandwidth\n"
    "measured in the same run: a JSON line for each case and number of rows, and a table.\n"
    "\n"
    "  --isa=NAME         portable, avx2 or avx512 (the best there is)\n"
    "  --filter=TEXT      only the cases, FORMAT/SHAPE, that contain it (all)\n"
    "  --rows=LIST        (1,2,4,8,16,32,64,128)\n"
    "  --type=bf16|f16    of the activations (bf16)\n"
    "  --threads=N        (2)\n"
    "  --samples=N        passes over all weights (9)\n"
    "  --megabytes=N      of weights (288)\n"
    "  --best             shares and ratios of the best calls, not of the median one\n";

struct Options {
  std::string isa = available_isas().back(), filter, rows = "1,2,4,8,16,32,64,128", type = "bf16";
  int threads = 2, samples = 9;
  size_t megabytes = 288;
  bool help = false;
  bool best = false;  // table and shares by the best calls instead of the median one
};

struct Shape {
  const char* name;
  int n, k;
};
constexpr Shape kShapes[] = {{"qkv", 960, 576},
                             {"o", 576, 576},
                             {"gate_up", 3072, 576},
                             {"down", 576, 1536},
                             {"head", 49152, 576}};

/// A format's cast in one of its groups, as one of its modes runs it.
struct Case {
  std::string label;  // the format's name, a8 for a16 where that is the mode, and the group
  const char* format;
  Act act;
  int group;
};
std::vector<Case> all_cases() {
  std::vector<Case> out;
  for (const WeightFormat* f : formats()) {
    if (!f->cast) continue;
    const int none[] = {0};
    for (const int group : f->groups.empty() ? std::span<const int>(none) : f->groups)
      for (const ActMode mode : f->acts) {
        std::string label = f->name;
        if (const size_t at = label.find("a16"); mode.act == Act::a8 && at != label.npos)
          label.replace(at, 3, "a8");
        if (group) label += "-g" + std::to_string(group);
        out.push_back({label, f->name, mode.act, group});
      }
  }
  return out;
}

std::string case_name(const Case& c, const Shape& shape) { return c.label + "/" + shape.name; }

bool is_wanted(const Case& c, const Shape& shape, const std::string& filter) {
  return case_name(c, shape).find(filter) != std::string::npos;
}

void check_filter(const std::string& filter) {
  std::string names;
  for (const Case& c : all_cases())
    for (const Shape& shape : kShapes) {
      if (is_wanted(c, shape, filter)) return;
      names += (names.empty() ? "" : ", ") + case_name(c, shape);
    }
  fail(Code::invalid_argument, "bench: --filter=", filter, " is in no case; there are ", names);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds of many equal calls. The best twentieth is what a machine shared with others shows when
/// they pause; on a quiet one it is close to the median.
struct Times {
  double median, best;
  double of(const Options& o) const { return o.best ? best : median; }
};
Times summary(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v[v.size() / 20]};
}

/// Memory on large pages, as the engine's weights are.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_((bytes + (2 << 20) - 1) >> 21 << 21) {
    data_ = std::aligned_alloc(2 << 20, bytes_);
    check(data_ != nullptr, Code::out_of_memory, "bench: ", bytes_, " bytes are not to be had");
    madvise(data_, bytes_, MADV_HUGEPAGE);
    std::memset(data_, 0, bytes_);
  }
  ~Pages() { std::free(data_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

/// Bytes a second that the threads read of memory no cache holds: the ceiling of every kernel.
double read_bandwidth(ThreadPool& pool, const Pages& pages, const Options& o) {
  std::vector<double> seconds;
  std::vector<uint64_t> sums(64);
  const size_t piece = size_t{4} << 20, share = piece / pool.threads() / 256 * 256;
  for (size_t from = 0, i = 0; i < 4 * pages.bytes() / piece;
       ++i, from = (from + piece) % pages.bytes()) {
    const double begin = now();
    pool.run([&](int part) {
      using V = uint64_t __attribute__((vector_size(64)));
      V a{}, b{}, c{}, d{};
      const std::byte* p = pages.data() + from + share * part;
      for (size_t at = 0; at < share; at += 256) {
        a ^= *reinterpret_cast<const V*>(p + at), b ^= *reinterpret_cast<const V*>(p + at + 64);
        c ^= *reinterpret_cast<const V*>(p + at + 128),
            d ^= *reinterpret_cast<const V*>(p + at + 192);
      }
      a ^= b ^ c ^ d;
      sums[part] += a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    });
    seconds.push_back(now() - begin);
  }
  volatile uint64_t sink = sums[0];
  (void)sink;
  return static_cast<double>(share) * pool.threads() / summary(seconds).of(o);
}

/// One shape in one format: enough packed copies that a pass over all leaves no cache warm.
struct Matrix {
  const LinearKernel* kernel;
  Act act;
  CanonicalWeight weight;
  size_t bytes, stride;
  int copies;
};

Matrix make(const Case& c, const Shape& shape, const Options& o, const Pages& pages,
            std::mt19937& random) {
  std::normal_distribution<float> normal(0, .02f);
  std::vector<float> values(size_t(shape.n) * shape.k);
  for (float& v : values) v = normal(random);
  Matrix m{nullptr, c.act, format_named(c.format).cast(values, shape.n, shape.k, c.group)};
  if (o.type == "f16" && m.weight.desc.code == DType::bf16) {
    m.weight.desc.code = DType::f16;
    for (size_t i = 0; i < values.size(); ++i) m.weight.dense[i] = to_f16(values[i]);
  }
  for (const LinearKernel& kernel : linear_kernels())
    if (kernel.family == "cpu/" + o.isa && std::string(kernel.format) == c.format &&
        kernel.mode.act == c.act)
      m.kernel = &kernel;
  check(m.kernel != nullptr, Code::unsupported, "bench: there is no kernel for ", c.format, " on ",
        o.isa);
  m.bytes = m.kernel->packing->bytes(m.weight.desc, shape.n, shape.k);
  m.stride = (m.bytes + 63) / 64 * 64;
  m.copies = static_cast<int>(pages.bytes() / m.stride);
  check(m.copies > 0, Code::invalid_argument, "--megabytes=", o.megabytes, ": ", c.label, "/",
        shape.name, " alone takes ", (m.stride >> 20) + 1, "; give more, or a --filter");
  const std::vector<std::byte> packed = pack(m.kernel, m.weight);
  std::memcpy(pages.data(), packed.data(), m.bytes);
  for (int i = 1; i < m.copies; ++i)
    std::memcpy(pages.data() + m.stride * i, pages.data(), m.bytes);
  return m;
}

/// Times of one product, call by call over all copies.
Times time_rows(const Matrix& m, int rows, ThreadPool& pool, const Options& o, const Pages& pages,
                std::mt19937& random) {
  std::normal_distribution<float> normal(0, 1);
  const DType type = o.type == "f16" ? DType::f16 : DType::bf16;
  const int n = m.weight.n, k = m.weight.k, group = m.weight.desc.group ? m.weight.desc.group : k;
  std::vector<uint16_t> x(size_t(rows) * k);
  for (auto& v : x) v = to_16(type, normal(random));
  std::vector<int8_t> q(x.size());
  for (auto& v : q) v = static_cast<int8_t>(int(random() % 255) - 127);
  std::vector<float> scale(size_t(rows) * (k / group), .01f);
  std::vector<int32_t> sum(scale.size(), 3);
  Pages y(size_t(rows) * n * 4);
  int32_t total = rows;
  LinearArgs args{};
  args.live = {&total, nullptr, rows};
  args.y = {y.data(), DType::f32, rows, n};
  args.x = {x.data(), type, rows, k};
  args.x8 = {args.live, args.x, group, group, q.data(), scale.data(), sum.data()};
  args.act = m.act;
  args.weight = {m.weight.desc, n, k, nullptr, m.bytes, nullptr};

  // Many rows are bound by arithmetic: a few copies tell as much as all of them.
  const int copies = std::max(1, std::min(m.copies, rows > 16 ? m.copies * 16 / rows : m.copies));
  std::vector<double> seconds;
  for (int sample = 0; sample < o.samples; ++sample)
    for (int i = 0; i < copies; ++i) {
      args.weight.data = pages.data() + m.stride * ((i + sample * copies) % m.copies);
      const double begin = now();
      pool.run([&](int part) { function_of (*m.kernel->run)(args, Lane{part, pool.threads()}); });
      seconds.push_back(now() - begin);
    }
  return summary(seconds);
}

std::vector<int> numbers(const std::string& list) {
  std::vector<int> out;
  for (size_t at = 0; at < list.size();) {
    const size_t comma = std::min(list.find(',', at), list.size());
    out.push_back(std::atoi(list.substr(at, comma - at).c_str()));
    check(out.back() > 0, Code::invalid_argument, "bench: --rows takes positive numbers, not \"",
          list, "\"");
    at = comma + 1;
  }
  return out;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i], name = arg.substr(0, arg.find('='));
    const std::string value =
        arg.find('=') == std::string::npos ? "" : arg.substr(arg.find('=') + 1);
    if (name == "--help" || name == "-h")
      o.help = true;
    else if (name == "--isa")
      o.isa = value;
    else if (name == "--filter")
      o.filter = value;
    else if (name == "--rows")
      o.rows = value;
    else if (name == "--type")
      o.type = value;
    else if (name == "--threads")
      o.threads = std::max(1, std::atoi(value.c_str()));
    else if (name == "--samples")
      o.samples = std::max(1, std::atoi(value.c_str()));
    else if (name == "--best")
      o.best = true;
    else if (name == "--megabytes")
      o.megabytes = std::max(1, std::atoi(value.c_str()));
    else
      fail(Code::invalid_argument, "bench: ", arg, " is not known; --help lists the options");
  }
  check_filter(o.filter);
  return o;
}

void run(const Options& o) {
  ThreadPool pool(o.threads);
  std::mt19937 random(1);
  const std::vector<int> rows = numbers(o.rows);
  Pages pages(o.megabytes << 20);
  bench::JsonLines out("");
  std::string table;
  char line[256];
  for (const Case& c : all_cases()) {
    std::vector<Times> layer(rows.size());
    double layer_bytes = 0, ceiling = 0;
    const auto report = [&](const char* shape, double bytes, const std::vector<Times>& times) {
      std::vector<double> seconds;
      for (const Times& t : times) seconds.push_back(t.of(o));
      std::snprintf(line, sizeof line, "%-10s %-8s", c.label.c_str(), shape);
      table += line;
      for (size_t i = 0; i < rows.size(); ++i) {
        out.write({{"format", c.label},
                   {"type", o.type},
                   {"isa", o.isa},
                   {"shape", shape},
                   {"rows", rows[i]},
                   {"threads", o.threads},
                   {"us", bench::rounded(times[i].median * 1e6, 2)},
                   {"best_us", bench::rounded(times[i].best * 1e6, 2)},
                   {"gb_per_s", bench::rounded(bytes / seconds[i] / 1e9, 2)},
                   {"ceiling_gb_per_s", bench::rounded(ceiling / 1e9, 2)},
                   {"share", bench::rounded(bytes / seconds[i] / ceiling, 3)},
                   {"of_one_row", bench::rounded(seconds[i] / seconds[0], 3)}});
        std::snprintf(line, sizeof line, i ? "  %6.2fx" : "  %5.1f%%",
                      i ? seconds[i] / seconds[0] : 100 * bytes / seconds[i] / ceiling);
        table += line;
      }
      table += "\n";
    };
    for (const Shape& shape : kShapes) {
      if (!is_wanted(c, shape, o.filter)) continue;
      const Matrix m = make(c, shape, o, pages, random);
      ceiling = read_bandwidth(pool, pages, o);
      std::vector<Times> times;
      for (const int r : rows) times.push_back(time_rows(m, r, pool, o, pages, random));
      ceiling = (ceiling + read_bandwidth(pool, pages, o)) / 2;
      report(shape.name, static_cast<double>(m.bytes), times);
      if (std::string(shape.name) == "head") continue;
      layer_bytes += static_cast<double>(m.bytes);
      for (size_t i = 0; i < rows.size(); ++i)
        layer[i].median += times[i].median, layer[i].best += times[i].best;
    }
    if (layer_bytes > 0 && o.filter.find('/') == std::string::npos)
      report("layer", layer_bytes, layer);
  }
  std::printf("\nformat     shape    rows");
  for (const int r : rows) std::printf("  %d", r);
  std::printf(" (first: share of the read bandwidth; others: time against it)\n%s", table.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options o = parse(argc, argv);
    if (o.help)
      std::fputs(kUsage, stdout);
    else
      run(o);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
