// How a model is loaded. What config.json and the headers of the files say decides every size, and
// all memory is taken. Then threads take some rows after the others, in the order of the layers,
// read them, cast them where a copy asks for it, and pack them where they stay.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <mutex>
#include <span>

#include "backends/memory.h"
#include "core/round_up.h"
#include "core/units.h"
#include "model/weights.h"

namespace stepladder {
namespace {

/// Bytes of a file that a thread reads at once: what stays in its cache until it is packed.
constexpr size_t kUnitBytes = size_t{512} << 10;
constexpr int kRowsTogether = 32;  // of the packed layouts' tiles
constexpr size_t kSpare = 3;       // pieces of memory kept for the matrices to come

/// One packed copy of a matrix.
struct Copy {
  const Linear* linear = nullptr;      // null: the rows as they are
  const WeightFormat* cast = nullptr;  // null: as stored
  std::byte* memory = nullptr;         // of the backend
  size_t bytes = 0;
  std::vector<std::byte> staged;  // all of it, where the host cannot write `memory`
};

/// Matrices of the checkpoint that run as one, one below the other, and what is made of them.
struct Matrix {
  std::string name;  // of the first
  std::vector<std::unique_ptr<WeightReader>> parts;
  std::vector<float> bias;  // [n] or empty
  int n = 0, k = 0;
  std::vector<Copy> copies;
  size_t left = 0;        // units that are not packed yet
  std::once_flag staged;  // whether its copies have memory, where the host cannot write their own
};

/// Rows that one thread reads at once.
struct Unit {
  Matrix* matrix;
  const WeightReader* part;
  int above;         // rows of the parts above it
  int first, count;  // of the part
  size_t bytes;      // that they are packed into
};

}  // namespace

class ModelLoader {
 public:
  ModelLoader(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config,
              const ModelOptions& options)
      : backend_(backend), checkpoint_(checkpoint), c_(config), options_(options) {}

  static std::unique_ptr<Model> blank(const ModelConfig& config,
                                      std::shared_ptr<const Model> shared) {
    return std::unique_ptr<Model>(new Model(config, std::move(shared)));
  }

  /// Plans a model, which must stay, and takes its memory. `also_a8`: its layers run with int8
  /// activations too.
  void add(Model& model, const Cast& cast, bool also_a8) {
    if (!model.shared_) load_shared(model);
    open_layers();
    copies_.clear();
    size_t at = 0;
    for (int i = 0; i < c_.layers; ++i) {
      Layer& layer = model.layers_[i];
      Linear* const linears[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
      for (int j = 0; j < 4; ++j) plan(*linears[j], *layers_[i * 4 + j], cast.cast, also_a8);
    }
    plan(model.head_, *head_, cast.head, false);
    size_t total = 0;
    for (const auto& [linear, matrix] : copies_) total += round_up<size_t>(linear->bytes(), 64);
    model.memory_ = allocate_buffer(backend_, total);
    for (const auto& [linear, matrix] : copies_) {
      std::byte* const memory = model.memory_.data() + at;
      linear->place(memory);
      matrix->copies.back().memory = memory;
      if (!matrix->bias.empty())
        backend_.upload(memory + linear->packed_bytes(), matrix->bias.data(),
                        matrix->bias.size() * sizeof(float));
      at += round_up<size_t>(linear->bytes(), 64);
    }
    model.default_act_ = format_named(model.layers_[0].qkv.desc().name).acts[0].act;
  }

  /// Reads and packs everything. Throws the first error in the order of the layers, whatever the
  /// number of threads.
  void run() {
    split();
    size_t done = 0, total = 0;
    for (const Unit& u : units_) total += u.bytes;
    ThreadPool pool(options_.threads);
    std::vector<RowMemory> memory(pool.threads());
    run_units(
        pool, units_.size(), [&](size_t i, int thread) { load(units_[i], memory[thread]); },
        [&](size_t i) {
          done += units_[i].bytes;
          if (options_.progress)
            check(options_.progress(done, total), Code::cancelled, "loading ", checkpoint_.where(),
                  " was cancelled");
        });
    backend_.wait();
    if (options_.notes && below_zero_)
      options_.notes->push_back(
          std::to_string(below_zero_) + " of " + std::to_string(scales_) +
          " scales of 4-bit integers are below zero; they count with their sign");
  }

 private:
  // ---- the plan ----------------------------------------------------------------------------

  void open_layers() {
    if (head_) return;
    const int q = c_.heads * c_.head_dim, kv = c_.kv_heads * c_.head_dim;
    for (int i = 0; i < c_.layers; ++i) {
      const auto name = [&](const char* matrix) { return names_.of_layer(i, matrix); };
      layers_.push_back(&open({name(names_.q), name(names_.k), name(names_.v)}, {q, kv, kv},
                              c_.width, c_.qkv_bias));
      layers_.push_back(&open({name(names_.o)}, {c_.width}, q, c_.o_bias));
      layers_.push_back(
          &open({name(names_.gate), name(names_.up)}, {c_.ffn, c_.ffn}, c_.width, c_.mlp_bias));
      layers_.push_back(&open({name(names_.down)}, {c_.width}, c_.ffn, c_.mlp_bias));
    }
    head_ = &open_head();
  }

  Matrix& open(const std::vector<std::string>& prefixes, const std::vector<int>& n, int k,
               bool biased) {
    Matrix& m = matrices_.emplace_back();
    m.name = prefixes[0], m.k = k;
    for (size_t i = 0; i < prefixes.size(); ++i) {
      m.parts.push_back(
          format_of(checkpoint_, prefixes[i]).open(checkpoint_, prefixes[i], n[i], k));
      const FormatDesc &first = m.parts[0]->desc(), &desc = m.parts[i]->desc();
      check(first.code == desc.code && first.group == desc.group && first.scale == desc.scale &&
                std::string_view(first.name) == desc.name,
            Code::unsupported, checkpoint_.where(), ": ", prefixes[0], " and ", prefixes[i],
            " are stored in different formats; layers that run fused must share one");
      load_bias(m, prefixes[i] + ".bias", n[i], biased);
      m.n += n[i];
    }
    return m;
  }

  /// A tied head in the model's own type is the embedding, read once for both.
  Matrix& open_head() {
    const std::string prefix = c_.tied_head ? c_.embedding : names_.head;
    // Neither has one in any family, whichever of the two is read.
    Matrix none;
    for (const char* name : {names_.embedding, names_.head})
      load_bias(none, std::string(name) + ".bias", c_.vocab, false);
    const WeightFormat& format = format_of(checkpoint_, prefix);
    if (embedding_ && c_.tied_head && std::string_view(format.name) == "dense" &&
        format.open(checkpoint_, prefix, c_.vocab, c_.width)->desc().code == c_.dtype) {
      return *embedding_;
    }
    return open({prefix}, {c_.vocab}, c_.width, false);
  }

  void load_bias(Matrix& m, const std::string& name, int n, bool wanted) const {
    if (wanted) {
      const auto values = checkpoint_.load_finite(name, n);
      m.bias.insert(m.bias.end(), values.begin(), values.end());
    } else if (checkpoint_.find(name)) {
      // A quantizer may write all-zero biases that the model does not have; anything else is a lie.
      const auto values = checkpoint_.load_finite(name, n);
      check(std::all_of(values.begin(), values.end(), [](float x) { return x == 0; }),
            Code::model_format, checkpoint_.where(), ": tensor ", name, " is not zero, but ",
            c_.architecture, " with this config.json has no bias there");
    }
  }

  /// One more copy of the matrix, which `linear` runs.
  void plan(Linear& linear, Matrix& m, const std::string& cast, bool also_a8) {
    FormatDesc desc = m.parts[0]->desc();
    Copy copy;
    if (!cast.empty() && cast != desc.name) {
      copy.cast = &format_named(cast);
      desc = cast_desc(*copy.cast, m.k);
    }
    const auto& can = format_named(desc.name).acts;
    std::vector<Act> acts = {can[0].act};
    if (also_a8 && acts[0] != Act::a8) {
      const auto is_a8 = [](const ActMode& mode) { return mode.act == Act::a8; };
      check(std::any_of(can.begin(), can.end(), is_a8), Code::unsupported, "switch:a8: ", m.name,
            " is stored as ", desc.name,
            ", which has no int8-activation mode; it needs weights that run with int8 "
            "activations too (stepladder quantize --format w4a16)");
      acts.push_back(Act::a8);
    }
    linear = Linear(backend_, desc, m.n, m.k, !m.bias.empty(), acts,
                    options_.generic ? kNoKernels : linear_kernels());
    copy.linear = &linear, copy.bytes = linear.packed_bytes();
    m.copies.push_back(std::move(copy));
    copies_.emplace_back(&linear, &m);
  }

  /// The embedding, norms and rope table.
  void load_shared(Model& model) {
    const int half = c_.head_dim / 2, positions = options_.positions;
    const size_t norms =
        static_cast<size_t>(c_.layers) * (2 * c_.width + (c_.qk_norm ? 2 * c_.head_dim : 0)) +
        c_.width;
    const size_t table = size_t(c_.vocab) * c_.width * 2;
    const size_t total = round_up<size_t>(table, 64) + norms * 4 + (4 * c_.layers + 1) * 64 +
                         size_t(positions) * half * 8 + 128;
    embedding_ = &matrices_.emplace_back();
    embedding_->name = c_.embedding, embedding_->n = c_.vocab, embedding_->k = c_.width;
    embedding_->parts.push_back(
        open_dense(checkpoint_, embedding_->name + ".weight", c_.vocab, c_.width, c_.dtype));
    model.shared_memory_ = allocate_buffer(backend_, total);
    Arena arena(model.shared_memory_.data(), total);
    model.embedding_ = arena.take_tensor(c_.dtype, c_.vocab, c_.width);
    Copy copy;
    copy.memory = static_cast<std::byte*>(model.embedding_.data), copy.bytes = table;
    embedding_->copies.push_back(std::move(copy));

    const auto norm = [&](const std::string& name, int width) {
      const auto values = checkpoint_.load_finite(name, width);
      float* out = arena.take_array<float>(width);
      backend_.upload(out, values.data(), values.size() * 4);
      return out;
    };
    for (int i = 0; i < c_.layers; ++i) {
      const auto of_layer = [&](const char* name, int n) {
        return norm(names_.of_layer(i, name) + ".weight", n);
      };
      Layer& layer = model.layers_[i];
      layer.attention_norm = of_layer(names_.attention_norm, c_.width);
      layer.ffn_norm = of_layer(names_.ffn_norm, c_.width);
      if (c_.qk_norm) {
        layer.q_norm = of_layer(names_.q_norm, c_.head_dim);
        layer.k_norm = of_layer(names_.k_norm, c_.head_dim);
      }
    }
    model.final_norm_ = norm(std::string(names_.final_norm) + ".weight", c_.width);

    const std::vector<float> values = rope_values(c_, positions);
    float* out = arena.take_array<float>(values.size());
    backend_.upload(out, values.data(), values.size() * 4);
    model.rope_ = out, model.rope_positions_ = positions;
  }

  // ---- the work ----------------------------------------------------------------------------

  void split() {
    for (Matrix& m : matrices_) {
      size_t bytes = 0;
      for (const Copy& copy : m.copies) bytes += copy.bytes;
      int above = 0;
      for (const auto& part : m.parts) {
        const size_t row = described_row_bytes(part->desc(), part->k());
        const int fit = static_cast<int>(std::min<size_t>(kUnitBytes / row, part->n()));
        const int rows =
            std::max({fit / kRowsTogether * kRowsTogether, kRowsTogether, part->least_rows()});
        for (int first = 0; first < part->n(); first += rows) {
          const int count = std::min(rows, part->n() - first);
          units_.push_back({&m, part.get(), above, first, count, bytes * count / m.n});
          ++m.left;
        }
        above += part->n();
      }
    }
  }

  /// Any thread.
  /// Quantizers that map the value of largest magnitude to -8 write scales of either sign; others
  /// none below zero, and a file with a few is worth a word.
  void count_signs(const WeightRows& rows) {
    const size_t n = rows.desc.groups(rows.k) * rows.count;
    scales_ += n;
    below_zero_ += std::count_if(rows.scales, rows.scales + n, [](float x) { return x < 0; });
  }

  void load(const Unit& unit, RowMemory& memory) {
    Matrix& m = *unit.matrix;
    if (!backend_.on_host()) std::call_once(m.staged, [&] { stage(m); });
    WeightRows rows = unit.part->read(unit.first, unit.count, memory);
    if (rows.desc.code == DType::i4) count_signs(rows);
    rows.n = m.n, rows.first += unit.above;
    for (Copy& copy : m.copies) {
      std::byte* const out = backend_.on_host() ? copy.memory : copy.staged.data();
      if (!copy.linear) {
        pack_described(rows, out);
      } else if (!copy.cast) {
        copy.linear->pack(rows, out);
      } else {
        const size_t size = size_t(rows.count) * rows.k;
        float* const values = memory.cast_values.take<float>(size);
        dequantize(rows, values);
        check_finite(m.name, rows, {values, size});
        const CanonicalWeight weight = copy.cast->cast({values, size}, rows.count, rows.k, 0);
        WeightRows cast = rows_of(weight, memory.cast_codes);
        cast.n = rows.n, cast.first = rows.first;
        copy.linear->pack(cast, out);
      }
    }
    if (!backend_.on_host()) hand_over(m);
  }

  /// Codes and scales are finite each, but their product may not be where a format's reader does
  /// not see to it.
  void check_finite(const std::string& name, const WeightRows& rows,
                    std::span<const float> values) const {
    const auto bad =
        std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    check(bad == values.end(), Code::model_format, checkpoint_.where(), ": ", name, ": row ",
          rows.first + (bad - values.begin()) / rows.k,
          " has a weight beyond the range of f32 (its code times its scale); the file is damaged");
  }

  /// Zeroed memory for the copies of a matrix, that of matrices which are through where there is
  /// some: to touch new memory takes longer than all else that is done to it. Waits for an upload
  /// in hand, so that packing never is far ahead of them.
  void stage(Matrix& m) {
    for (Copy& copy : m.copies) {
      {
        const std::lock_guard lock(mutex_);
        const auto fits = [&](const auto& memory) { return memory.capacity() >= copy.bytes; };
        const auto spare = std::find_if(spare_.begin(), spare_.end(), fits);
        if (spare != spare_.end()) {
          copy.staged = std::move(*spare);
          spare_.erase(spare);
        }
      }
      copy.staged.assign(copy.bytes, std::byte{});
    }
  }

  /// Uploads a matrix once all of it is packed.
  void hand_over(Matrix& m) {
    const std::lock_guard lock(mutex_);
    if (--m.left > 0) return;
    for (Copy& copy : m.copies) {
      backend_.upload(copy.memory, copy.staged.data(), copy.bytes);
      // The one that fits least is let go where there are too many.
      spare_.push_back(std::move(copy.staged));
      std::sort(spare_.begin(), spare_.end(),
                [](const auto& a, const auto& b) { return a.capacity() < b.capacity(); });
      if (spare_.size() > kSpare) spare_.erase(spare_.begin());
    }
  }

  Backend& backend_;
  const Checkpoint& checkpoint_;
  const ModelConfig& c_;
  const TensorNames& names_ = *c_.family->names;
  const ModelOptions& options_;
  std::deque<Matrix> matrices_;  // the embedding's, then in the order of the layers
  Matrix* embedding_ = nullptr;  // null where another model's is shared
  std::vector<Matrix*> layers_;  // qkv, o, gate_up, down of each layer
  Matrix* head_ = nullptr;
  std::vector<std::pair<Linear*, Matrix*>> copies_;  // of the model that is being added
  std::vector<Unit> units_;
  std::atomic<size_t> scales_{0}, below_zero_{0};  // of 4-bit integers that were read
  std::mutex mutex_;                               // of what is spare, and of uploads
  std::vector<std::vector<std::byte>> spare_;      // by rising size
};

Model::Model(const ModelConfig& config, std::shared_ptr<const Model> shared)
    : config_(config), shared_(std::move(shared)), layers_(config.layers) {
  if (!shared_) return;
  embedding_ = shared_->embedding_, final_norm_ = shared_->final_norm_, rope_ = shared_->rope_;
  rope_positions_ = shared_->rope_positions_;
  for (int i = 0; i < config_.layers; ++i) {
    const Layer& from = shared_->layers_[i];
    layers_[i].attention_norm = from.attention_norm, layers_[i].ffn_norm = from.ffn_norm;
    layers_[i].q_norm = from.q_norm, layers_[i].k_norm = from.k_norm;
  }
}

Model::Model(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config,
             const ModelOptions& options, std::shared_ptr<const Model> shared)
    : Model(config, std::move(shared)) {
  check(!shared_ || rope_positions_ >= options.positions, Code::internal,
        "shared rope table is too short");
  ModelLoader loader(backend, checkpoint, config_, options);
  loader.add(*this, options, options.also_a8);
  loader.run();
}

std::vector<std::shared_ptr<const Model>> load_models(Backend& backend,
                                                      const Checkpoint& checkpoint,
                                                      const ModelConfig& config,
                                                      const ModelOptions& options,
                                                      std::span<const Cast> casts) {
  ModelLoader loader(backend, checkpoint, config, options);
  std::shared_ptr<Model> stored = ModelLoader::blank(config, nullptr);
  loader.add(*stored, options, options.also_a8);
  std::vector<std::shared_ptr<const Model>> out = {stored};
  for (const Cast& cast : casts) {
    std::shared_ptr<Model> copy = ModelLoader::blank(config, stored);
    loader.add(*copy, cast, false);
    out.push_back(std::move(copy));
  }
  loader.run();
  return out;
}

size_t load_scratch_bytes(const ModelConfig& c, int threads, bool on_host) {
  // Rows as stored and as codes, and for a cast as f32 and as codes of a byte: 4-bit codes grow
  // most.
  const size_t widest = std::max({c.width, c.ffn, c.heads * c.head_dim});
  const size_t unit = std::max(kUnitBytes * 2, 256 * widest);  // weights a thread holds
  const size_t body = std::max(2 * size_t(c.ffn), size_t(c.heads + 2 * c.kv_heads) * c.head_dim) *
                      c.width * 2,
               head = size_t(c.vocab) * c.width * 2;
  return threads * unit * 10 + (on_host ? 0 : 2 * (body + head));
}

}  // namespace stepladder
