#include "model/eagle_head.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "backends/memory.h"
#include "core/round_up.h"
#include "model/settings.h"

namespace stepladder {
namespace {

/// The tensors of a head lie where a decoder's own code keeps them, without "model.".
constexpr TensorNames kNames = [] {
  TensorNames names = kHuggingFace;
  names.embedding = "embed_tokens", names.final_norm = "norm", names.layers = "layers.";
  return names;
}();
constexpr const char* kFc = "fc";

const std::vector<Family>& head_families() {
  static const std::vector<Family> all = [] {
    std::vector<Family> out(families().begin(), families().end());
    for (Family& family : out) family.names = &kNames;
    return out;
  }();
  return all;
}

/// A matrix of the head: tensors one below the other.
struct Matrix {
  std::vector<std::string> names;
  std::vector<int> rows;
  int k = 0;
  bool bias = false;

  int n() const {
    int out = 0;
    for (int r : rows) out += r;
    return out;
  }
};

/// fc, then qkv, o, gate_up and down of each layer.
std::vector<Matrix> matrices(const EagleConfig& config) {
  const ModelConfig& c = config.layers;
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  std::vector<Matrix> out = {{{kFc}, {c.width}, 2 * c.width, config.fc_bias}};
  for (int i = 0; i < c.layers; ++i) {
    const auto name = [i](const char* tensor) { return kNames.of_layer(i, tensor); };
    out.push_back(
        {{name(kNames.q), name(kNames.k), name(kNames.v)}, {q, kv, kv}, c.width, c.qkv_bias});
    out.push_back({{name(kNames.o)}, {c.width}, q, c.o_bias});
    out.push_back({{name(kNames.gate), name(kNames.up)}, {c.ffn, c.ffn}, c.width, c.mlp_bias});
    out.push_back({{name(kNames.down)}, {c.width}, c.ffn, c.mlp_bias});
  }
  return out;
}

struct Norm {
  std::string name;
  int n;
};
/// In the order attention, ffn, q, k of each layer; those that a layer does not have are left out.
std::vector<Norm> norms(const EagleConfig& config) {
  const ModelConfig& c = config.layers;
  std::vector<Norm> out;
  for (int i = 0; i < c.layers; ++i) {
    const auto add = [&](const char* tensor, int n) {
      out.push_back({kNames.of_layer(i, tensor) + ".weight", n});
    };
    if (i > 0 || config.first_norm) add(kNames.attention_norm, c.width);
    add(kNames.ffn_norm, c.width);
    if (c.qk_norm) add(kNames.q_norm, c.head_dim), add(kNames.k_norm, c.head_dim);
  }
  return out;
}

void check_shape(const Checkpoint& checkpoint, const std::string& name,
                 std::initializer_list<int64_t> shape) {
  checkpoint.need(name, "", std::span(shape.begin(), shape.size()));
}

/// Every tensor there is has its place, and every place its tensor.
void check_tensors(const Checkpoint& checkpoint, const EagleConfig& config) {
  std::vector<std::string> known;
  const auto need = [&](const std::string& name, std::initializer_list<int64_t> shape) {
    check_shape(checkpoint, name, shape);
    known.push_back(name);
  };
  for (const Matrix& m : matrices(config))
    for (size_t i = 0; i < m.names.size(); ++i) {
      need(m.names[i] + ".weight", {m.rows[i], m.k});
      if (m.bias) need(m.names[i] + ".bias", {m.rows[i]});
    }
  for (const Norm& norm : norms(config)) need(norm.name, {norm.n});
  const ModelConfig& c = config.layers;
  if (config.own_embedding) need(std::string(kNames.embedding) + ".weight", {c.vocab, c.width});
  for (const std::string& name : checkpoint.names())
    check(name.ends_with("rotary_emb.inv_freq") ||
              std::find(known.begin(), known.end(), name) != known.end(),
          Code::unsupported, checkpoint.where(), ": tensor ", name,
          " has no place in an EAGLE-2 head, which is fc and the layers behind it");
}

/// Of another kind than EAGLE-2, by what only those have.
void refuse_other_kinds(const Checkpoint& checkpoint) {
  for (const std::string& name : checkpoint.names())
    check(name != "d2t" && name != "t2d" && !name.starts_with("midlayer."), Code::unsupported,
          checkpoint.where(), ": tensor ", name,
          " is of an EAGLE-3 head, which cannot be read yet; give an EAGLE-2 head");
  check(checkpoint.find(std::string(kFc) + ".weight") != nullptr, Code::model_format,
        checkpoint.where(), " has no tensor fc.weight; it is no EAGLE-2 head");
}

CanonicalWeight read_matrix(const Checkpoint& checkpoint, const Matrix& m, DType type) {
  RowMemory memory;
  std::optional<CanonicalWeight> out;
  for (size_t i = 0; i < m.names.size(); ++i) {
    const auto reader = open_dense(checkpoint, m.names[i] + ".weight", m.rows[i], m.k, type);
    CanonicalWeight part = canonical(reader->read(0, m.rows[i], memory));
    if (m.bias) part.bias = checkpoint.load_finite(m.names[i] + ".bias", m.rows[i]);
    out ? out->append(part) : void(out = std::move(part));
  }
  return *std::move(out);
}

constexpr Act kActs[] = {Act::a16};

Linear linear_of(const Backend& backend, const Matrix& m, DType type) {
  return Linear(backend, FormatDesc{"dense", type, 0, false, DType::f32}, m.n(), m.k, m.bias,
                kActs);
}

/// Where the parts lie, one after the other.
struct Layout {
  std::vector<Linear> linears;
  std::vector<std::byte*> memory;  // of each
  std::vector<float*> norms;
  Tensor embedding{};
  float* rope = nullptr;

  Layout(const Backend& backend, const EagleConfig& config, int positions, Arena& arena) {
    const ModelConfig& c = config.layers;
    for (const Matrix& m : matrices(config)) {
      linears.push_back(linear_of(backend, m, c.dtype));
      memory.push_back(arena.take_array<std::byte>(linears.back().bytes()));
    }
    for (const Norm& norm : stepladder::norms(config))
      norms.push_back(arena.take_array<float>(norm.n));
    rope = arena.take_array<float>(size_t(positions) * c.head_dim);
    if (config.own_embedding) embedding = arena.take_tensor(c.dtype, c.vocab, c.width);
  }
};

}  // namespace

EagleConfig read_eagle_config(const Checkpoint& checkpoint, const ModelConfig& above) {
  refuse_other_kinds(checkpoint);
  const std::string where = checkpoint.where() + "/config.json";
  const Settings settings(checkpoint.config(), where);
  EagleConfig out;
  ModelConfig& c = out.layers;
  c = read_layers_config(checkpoint, head_families());
  check(c.width == above.width, Code::model_format, where, ": hidden_size ", c.width,
        " is not that of the model above it, ", above.width,
        "; give a head that was trained for this model");
  check(c.vocab == above.vocab, Code::vocab_mismatch, where, ": vocab_size ", c.vocab,
        " is not that of the model above it, ", above.vocab,
        "; give a head that was trained for this model");
  const bool has_rope = settings.find("rope_theta") || settings.find("rope_scaling") ||
                        settings.find("rope_parameters");
  if (!has_rope) c.rope = above.rope;
  c.dtype = above.dtype;
  const auto stored = [&](const std::string& name) { return checkpoint.find(name) != nullptr; };
  out.fc_bias = stored(std::string(kFc) + ".bias");
  out.own_embedding = stored(std::string(kNames.embedding) + ".weight");
  out.first_norm = stored(kNames.of_layer(0, kNames.attention_norm) + ".weight");
  check_tensors(checkpoint, out);
  return out;
}

size_t EagleHead::bytes(const Backend& backend, const EagleConfig& config, int positions) {
  Arena measure;
  Layout(backend, config, positions, measure);
  return measure.peak();
}

EagleHead::EagleHead(Backend& backend, const Checkpoint& checkpoint, const EagleConfig& config,
                     const Model& above, int positions)
    : config_(config),
      above_(above),
      memory_(allocate_buffer(backend, bytes(backend, config, positions))),
      layers_(config.layers.layers) {
  const ModelConfig& c = config_.layers;
  Arena arena(memory_.data(), memory_.bytes());
  Layout at(backend, config_, positions, arena);
  const auto all = matrices(config_);
  for (size_t i = 0; i < all.size(); ++i)
    at.linears[i].upload(backend, read_matrix(checkpoint, all[i], c.dtype), at.memory[i]);
  const auto named = norms(config_);
  for (size_t i = 0; i < named.size(); ++i)
    backend.upload(at.norms[i], checkpoint.load_finite(named[i].name, named[i].n).data(),
                   named[i].n * sizeof(float));
  const std::vector<float> rope = rope_values(c, positions);
  backend.upload(at.rope, rope.data(), rope.size() * sizeof(float));
  embedding_ = above.embedding(), rope_ = at.rope;
  if (config_.own_embedding) {
    embedding_ = at.embedding;
    const Matrix table{{kNames.embedding}, {c.vocab}, c.width, false};
    const CanonicalWeight rows = read_matrix(checkpoint, table, c.dtype);
    backend.upload(embedding_.data, rows.dense.data(), embedding_.bytes());
  }

  fc_ = at.linears[0];
  size_t linear = 1, norm = 0;
  for (int i = 0; i < c.layers; ++i) {
    Layer& layer = layers_[i];
    if (i > 0 || config_.first_norm) layer.attention_norm = at.norms[norm++];
    layer.ffn_norm = at.norms[norm++];
    if (c.qk_norm) layer.q_norm = at.norms[norm++], layer.k_norm = at.norms[norm++];
    for (Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) *l = at.linears[linear++];
  }
  backend.wait();
}

size_t EagleHead::pass_bytes() const {
  size_t bytes = fc_.pass_bytes(Act::a16);
  for (const Layer& layer : layers_)
    for (const Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      bytes += l->pass_bytes(Act::a16);
  return bytes;
}

}  // namespace stepladder
