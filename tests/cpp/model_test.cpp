// Logits of the forward pass against an fp64 reference written straight from the canonical
// weights: every family, rope type, weight format and activation mode on every backend.
//
// The reference runs twice, exactly and with the engine's roundings to 16 bits (and to int8 where
// asked) at the places where they are stored. The distance between the two is the rounding noise
// of this very model and text, and the tolerance: nothing in it is tuned.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "backends/memory.h"
#include "model/kv_cache.h"
#include "model/transformer.h"
#include "support/backends.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using Matrix = std::vector<std::vector<double>>;

// ---- the reference -------------------------------------------------------------------------

class Reference {
 public:
  Reference(const Checkpoint& checkpoint, bool rounded, Act act)
      : checkpoint_(checkpoint), c_(read_config(checkpoint)), rounded_(rounded), act_(act) {}

  /// Logits at every position.
  Matrix run(std::span<const int32_t> tokens) {
    const auto table = floats("model.embed_tokens.weight", {c_.vocab, c_.width});
    Matrix x(tokens.size());
    for (size_t t = 0; t < tokens.size(); ++t)
      x[t].assign(table.begin() + size_t(tokens[t]) * c_.width,
                  table.begin() + size_t(tokens[t] + 1) * c_.width);
    for (int i = 0; i < c_.layers; ++i) layer(i, x);
    const auto weight = floats("model.norm.weight", {c_.width});
    for (auto& row : x) row = norm(row, weight);
    return product(c_.tied_head ? "model.embed_tokens" : "lm_head", c_.vocab, c_.width, x, false);
  }

 private:
  std::vector<double> floats(const std::string& name, std::vector<int64_t> shape) const {
    const auto values = checkpoint_.load_floats(name, shape);
    return {values.begin(), values.end()};
  }
  double round16(double x) const {
    if (!rounded_) return x;
    const float f = static_cast<float>(x);
    return from_16(c_.dtype, to_16(c_.dtype, f));
  }
  std::vector<double> norm(std::span<const double> x, const std::vector<double>& weight) const {
    double squares = 0;
    for (double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / double(x.size()) + c_.eps);
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = round16(x[i] * scale * weight[i]);
    return out;
  }

  /// x W^T + bias, with x in int8 per group of the weight where the mode says so.
  Matrix product(const std::string& prefix, int n, int k, const Matrix& x, bool body) const {
    const CanonicalWeight w = read_weight(checkpoint_, prefix, n, k);
    std::vector<double> values(size_t(n) * k), bias(n, 0.0);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < k; ++j) values[size_t(i) * k + j] = w.at(i, j);
    if (body && checkpoint_.find(prefix + ".bias")) bias = floats(prefix + ".bias", {n});
    const auto modes = format_named(w.desc.name).acts;
    const auto asked = std::find_if(modes.begin(), modes.end(),
                                    [&](const ActMode& mode) { return mode.act == act_; });
    const ActMode mode = body && asked != modes.end() ? *asked : modes[0];
    const bool int8 = rounded_ && body && mode.act == Act::a8;
    const int group = mode.per == Per::group && w.desc.group ? w.desc.group : k;
    Matrix out(x.size(), std::vector<double>(n));
    for (size_t t = 0; t < x.size(); ++t) {
      const std::vector<double> row = int8 ? through_int8(x[t], group) : x[t];
      for (int i = 0; i < n; ++i) {
        double sum = bias[i];
        for (int j = 0; j < k; ++j) sum += row[j] * values[size_t(i) * k + j];
        out[t][i] = sum;
      }
    }
    return out;
  }
  static std::vector<double> through_int8(const std::vector<double>& x, int group) {
    std::vector<double> out(x.size());
    for (size_t first = 0; first < x.size(); first += group) {
      float amax = 0;
      for (int j = 0; j < group; ++j)
        amax = std::max(amax, std::fabs(static_cast<float>(x[first + j])));
      const float scale = amax / 127.f;
      for (int j = 0; j < group; ++j)
        out[first + j] = scale == 0 ? 0 : std::nearbyint(x[first + j] / scale) * double(scale);
    }
    return out;
  }

  void rotate(std::span<double> head, int position) const {
    const RopeTable rope = rope_table(c_);
    const size_t half = head.size() / 2;
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * rope.inv_freq[i];
      const double cos = std::cos(angle) * rope.scale, sin = std::sin(angle) * rope.scale;
      const double a = head[i], b = head[i + half];
      head[i] = a * cos - b * sin, head[i + half] = b * cos + a * sin;
    }
  }
  /// Heads of one row, normalized where asked, rotated and rounded.
  std::vector<double> heads(std::span<const double> row, int position, const std::string& norm_name,
                            bool rotated) const {
    std::vector<double> out(row.begin(), row.end());
    const size_t dim = static_cast<size_t>(c_.head_dim);
    for (size_t h = 0; h * dim < out.size(); ++h) {
      const std::span<double> head(out.data() + h * dim, dim);
      if (rotated && c_.qk_norm) {
        const auto weight = floats(norm_name, {c_.head_dim});
        double squares = 0;
        for (double v : head) squares += v * v;
        const double scale = 1 / std::sqrt(squares / double(dim) + c_.eps);
        for (size_t i = 0; i < dim; ++i) head[i] *= scale * weight[i];
      }
      if (rotated) rotate(head, position);
    }
    for (double& v : out) v = round16(v);
    return out;
  }

  void layer(int i, Matrix& x) const {
    const std::string p = "model.layers." + std::to_string(i) + ".", a = p + "self_attn.";
    const int q_width = c_.heads * c_.head_dim, kv_width = c_.kv_heads * c_.head_dim;
    const size_t rows = x.size();
    Matrix normed(rows), attended(rows), gated(rows);
    const auto first = floats(p + "input_layernorm.weight", {c_.width});
    for (size_t t = 0; t < rows; ++t) normed[t] = norm(x[t], first);
    Matrix q = product(a + "q_proj", q_width, c_.width, normed, true);
    Matrix k = product(a + "k_proj", kv_width, c_.width, normed, true);
    Matrix v = product(a + "v_proj", kv_width, c_.width, normed, true);
    for (size_t t = 0; t < rows; ++t) {
      const int position = static_cast<int>(t);
      q[t] = heads(q[t], position, a + "q_norm.weight", true);
      k[t] = heads(k[t], position, a + "k_norm.weight", true);
      v[t] = heads(v[t], position, "", false);
    }
    for (size_t t = 0; t < rows; ++t) attended[t] = attend(q[t], k, v, t);
    add(x, product(a + "o_proj", c_.width, q_width, attended, true));
    const auto second = floats(p + "post_attention_layernorm.weight", {c_.width});
    for (size_t t = 0; t < rows; ++t) normed[t] = norm(x[t], second);
    const Matrix gate = product(p + "mlp.gate_proj", c_.ffn, c_.width, normed, true);
    const Matrix up = product(p + "mlp.up_proj", c_.ffn, c_.width, normed, true);
    for (size_t t = 0; t < rows; ++t)
      for (int j = 0; j < c_.ffn; ++j)
        gated[t].push_back(round16(gate[t][j] / (1 + std::exp(-gate[t][j])) * up[t][j]));
    add(x, product(p + "mlp.down_proj", c_.width, c_.ffn, gated, true));
  }
  static void add(Matrix& x, const Matrix& y) {
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t j = 0; j < x[t].size(); ++j) x[t][j] += y[t][j];
  }
  std::vector<double> attend(const std::vector<double>& q, const Matrix& k, const Matrix& v,
                             size_t t) const {
    std::vector<double> out(q.size());
    const int dim = c_.head_dim, share = c_.heads / c_.kv_heads;
    for (int h = 0; h < c_.heads; ++h) {
      const int from = h / share * dim;
      std::vector<double> score(t + 1);
      double most = -INFINITY, sum = 0;
      for (size_t s = 0; s <= t; ++s) {
        for (int j = 0; j < dim; ++j) score[s] += q[h * dim + j] * k[s][from + j];
        score[s] /= std::sqrt(double(dim));
        most = std::max(most, score[s]);
      }
      for (double& s : score) sum += s = std::exp(s - most);
      for (size_t s = 0; s <= t; ++s)
        for (int j = 0; j < dim; ++j) out[h * dim + j] += score[s] / sum * v[s][from + j];
    }
    for (double& o : out) o = round16(o);
    return out;
  }

  const Checkpoint& checkpoint_;
  ModelConfig c_;
  bool rounded_;
  Act act_;
};

// ---- the engine ----------------------------------------------------------------------------

/// Logits at every position, in blocks of `block` rows.
Matrix engine_logits(Backend& backend, const Model& model, std::span<const int32_t> tokens, Act act,
                     int block) {
  const int n = static_cast<int>(tokens.size()), vocab = model.head().n(), depth = 2;
  const ModelConfig& c = model.config();
  KVCache cache(backend, {c.layers, c.kv_heads, c.head_dim, (n + 31) / 32 * 32, depth, 1, c.dtype});
  Buffer memory;
  Plan plan;
  TreeView trees;
  Rows rows;
  Tensor residual, logits;
  int32_t *words = nullptr, *pick = nullptr;
  PassMemory pass_memory;
  const auto lay_out = [&](Arena& a) {
    words = a.take_array<int32_t>(1 + sizeof(PlanEntry) / 4 + n + 3);
    plan = {1, words, reinterpret_cast<PlanEntry*>(words + 1), words + 1 + sizeof(PlanEntry) / 4};
    int32_t* tree = words + 1 + sizeof(PlanEntry) / 4 + n;
    trees = {1, 1, tree, tree + 1, tree + 2};
    rows = take_rows(a, n, depth, 1);
    pick = a.take_array<int32_t>(n);
    residual = a.take_tensor(DType::f32, n, c.width);
    logits = a.take_tensor(DType::f32, n, vocab);
    pass_memory = PassMemory(backend, model, act, block, a);
  };
  Arena measure;
  lay_out(measure);
  memory = allocate_buffer(backend, measure.peak());
  Arena arena(memory.data(), memory.bytes());
  lay_out(arena);

  std::vector<int32_t> image(1 + sizeof(PlanEntry) / 4), order(n);
  PlanEntry entry;
  entry.root_position = n - 1, entry.missing = n - 1;
  image[0] = 1;
  std::memcpy(image.data() + 1, &entry, sizeof entry);
  image.insert(image.end(), tokens.begin(), tokens.end());
  image.insert(image.end(), {1, tokens[n - 1], -1});
  backend.upload(words, image.data(), image.size() * 4);
  for (int i = 0; i < n; ++i) order[i] = i;
  backend.upload(pick, order.data(), order.size() * 4);

  backend.expand({plan, trees, rows});
  for (int first = 0; first < n; first += block) {
    const int count = std::min(block, n - first);
    const Live live{rows.count, rows.block_row, count};
    const Pass pass{live, rows, cache.view(), act, residual};
    embed_rows(backend, model, pass);
    run_layers(backend, model, pass, pass_memory);
    run_head(backend, model, live, residual, pick, act, logits.slice(first, count), pass_memory);
    backend.advance({rows.block_row, count});
  }
  std::vector<float> host(size_t(n) * vocab);
  backend.read(host.data(), logits.data, logits.bytes());
  backend.wait();
  Matrix out(n);
  for (int t = 0; t < n; ++t)
    out[t].assign(host.begin() + size_t(t) * vocab, host.begin() + size_t(t + 1) * vocab);
  return out;
}

double distance(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (size_t t = 0; t < a.size(); ++t)
    for (size_t i = 0; i < a[t].size(); ++i) sum += (a[t][i] - b[t][i]) * (a[t][i] - b[t][i]);
  return std::sqrt(sum);
}
double size(const Matrix& a) {
  return distance(a, Matrix(a.size(), std::vector<double>(a[0].size())));
}

std::vector<int32_t> random_tokens(int n, int vocab, uint64_t seed) {
  TestRandom random(seed);
  std::vector<int32_t> out(n);
  for (int32_t& t : out) t = random.below(vocab);
  return out;
}

// ---- the tests -----------------------------------------------------------------------------

struct Case {
  TinySpec spec;
  Act act = Act::a16;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.spec.label() << (c.act == Act::a8 ? " as a8" : "");
}
std::vector<Case> cases() {
  std::vector<Case> out;
  for (const TinySpec& s : tiny_families()) out.push_back({s});
  for (const TinySpec& s : tiny_formats()) {
    if (s.format == "bf16" || s.format == "f16") continue;  // among the families
    out.push_back({s});
    if (also_a8(s)) out.push_back({s, Act::a8});
  }
  return out;
}
std::string plain_name(std::string s) {
  for (char& ch : s)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  return s;
}

class ModelTest : public ::testing::TestWithParam<Case> {};

TEST_P(ModelTest, LogitsAgreeWithTheReferenceWithinTheRoundingNoise) {
  const auto& [spec, act] = GetParam();
  const MemoryCheckpoint checkpoint = tiny_checkpoint(spec);
  const auto tokens = random_tokens(75, spec.vocab, spec.seed);
  const Matrix exact = Reference(checkpoint, false, act).run(tokens);
  const Matrix rounded = Reference(checkpoint, true, act).run(tokens);
  const double noise = distance(rounded, exact);
  // Without this the tolerance would prove nothing.
  ASSERT_LT(noise, 0.2 * size(exact));
  // Lively logits: their deviation is a few units, so that texts and drafts have something to miss.
  const double deviation = size(exact) / std::sqrt(double(exact.size()) * spec.vocab);
  EXPECT_GT(deviation, 1.5);
  EXPECT_LT(deviation, 6.0);

  for (const BackendCase& on : backend_cases())
    for (const bool generic : {false, true}) {
      SCOPED_TRACE(spec.label() + " on " + on.kernels() + (generic ? ", described path" : ""));
      const auto opened = on.open(2);
      Backend& backend = *opened;
      ASSERT_TRUE(backend.name().starts_with(on.kernels()));
      ModelOptions options;
      options.also_a8 = act == Act::a8, options.generic = generic, options.positions = 96;
      const Model model(backend, checkpoint, read_config(checkpoint), options);
      const Matrix logits = engine_logits(backend, model, tokens, act, 24);
      EXPECT_LE(distance(logits, rounded), noise);
      EXPECT_LE(distance(logits, exact), 2 * noise);
    }
}

INSTANTIATE_TEST_SUITE_P(All, ModelTest, ::testing::ValuesIn(cases()), [](const auto& info) {
  return plain_name(info.param.spec.label()) + (info.param.act == Act::a8 ? "_a8_" : "_") +
         std::to_string(info.index);
});

/// A row of the table alone says how tensors are called and which of them there are.
TEST(Families, ARowWithOtherNamesReadsTheSameModel) {
  TinySpec spec;
  spec.family = "qwen3", spec.seed = 5;
  const MemoryCheckpoint usual = tiny_checkpoint(spec);
  TensorNames names = *read_config(usual).family->names;
  names.embedding = "words", names.final_norm = "last", names.head = "out",
  names.layers = "blocks.";
  names.q = "look.q", names.down = "mix.narrow", names.ffn_norm = "mix.norm",
  names.k_norm = "look.kn";
  const std::vector<std::pair<std::string, std::string>> renamed = {
      {"model.embed_tokens", "words"},
      {"model.norm", "last"},
      {"lm_head", "out"},
      {"model.layers.", "blocks."},
      {"self_attn.q_proj", "look.q"},
      {"mlp.down_proj", "mix.narrow"},
      {"self_attn.k_norm", "look.kn"},
      {"post_attention_layernorm", "mix.norm"}};
  Family row = *read_config(usual).family;
  row.architecture = "OtherForCausalLM", row.model_type = "other", row.names = &names;

  nlohmann::json config = usual.config();
  config["architectures"] = {row.architecture}, config["model_type"] = row.model_type;
  MemoryCheckpoint other(config, "other");
  for (std::string name : usual.names()) {
    const TensorInfo info = usual.need(name);
    std::vector<std::byte> bytes(info.bytes);
    usual.read(name, bytes);
    for (const auto& [from, to] : renamed)
      if (const size_t at = name.find(from); at != std::string::npos)
        name.replace(at, from.size(), to);
    other.add(name, info.dtype, info.shape, bytes);
  }
  EXPECT_THROW(read_config(other), Error);  // the table that there is does not know it
  const ModelConfig c = read_config(other, {&row, 1});
  EXPECT_TRUE(c.notes.empty()) << c.notes[0];  // every tensor is used

  const auto backend = open_backend({.threads = 2});
  ModelOptions options;
  options.positions = 96;
  const auto tokens = random_tokens(40, spec.vocab, 3);
  const Model model(*backend, other, c, options),
      same(*backend, usual, read_config(usual), options);
  EXPECT_EQ(engine_logits(*backend, model, tokens, Act::a16, 24),
            engine_logits(*backend, same, tokens, Act::a16, 24));
}

TEST(Families, WhatARowSaysAndNoKernelComputesIsRefusedByName) {
  TinySpec spec;
  MemoryCheckpoint checkpoint = tiny_checkpoint(spec);
  const Family usual = *read_config(checkpoint).family;
  const auto refused = [&](const Family& row, const std::string& named) {
    try {
      read_config(checkpoint, {&row, 1});
      ADD_FAILURE() << named;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::unsupported);
      EXPECT_NE(std::string(e.what()).find(named), std::string::npos) << e.what();
    }
  };
  Family row = usual;
  row.post_norms = true;
  refused(row, "normalizes what its layers add");
  row = usual, row.activation = Activation::gelu_tanh;
  refused(row, "gates with gelu_pytorch_tanh");
  row = usual, row.embedding_scale = EmbeddingScale::root_of_width;
  refused(row, "scales its embeddings");
  // What is refused of config.json is the row's affair, and where the activation stands.
  constexpr RefusedKey kOwn[] = {{"rope_theta", 0}};
  row = usual, row.refused = kOwn;
  refused(row, "rope_theta");
  row.refused = {};
  checkpoint.config()["logit_scale"] = 0.5;
  EXPECT_NO_THROW(read_config(checkpoint, {&row, 1}));
  refused(usual, "logit_scale");
  checkpoint.config().erase("logit_scale");
  checkpoint.config()["gate"] = "relu";
  EXPECT_NO_THROW(read_config(checkpoint, {&usual, 1}));
  row.activation_key = "gate";
  refused(row, "gate \"relu\" is not silu");
}

/// What a quantized checkpoint holds is the dense one it was made from, up to its format's error.
TEST(TinyModel, QuantizedCheckpointsHoldTheWeightsTheyWereMadeFrom) {
  TinySpec dense;
  dense.seed = 21;
  const MemoryCheckpoint source = tiny_checkpoint(dense);
  for (TinySpec spec : tiny_formats()) {
    if (spec.format == "f16") continue;
    SCOPED_TRACE(spec.format);
    const MemoryCheckpoint quantized = tiny_checkpoint(spec);
    // Half a step of the code over the deviation of a normal weight, group by group, with slack
    // for the largest of a group: int8 rows, int4 groups of 32, e2m1's 25% steps.
    const double bound = spec.format == "bf16"           ? 0
                         : spec.format.starts_with("w8") ? 0.02
                         : spec.format == "mxfp4"        ? 0.2
                                                         : 0.15;
    for (const char* prefix : {"model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"}) {
      const bool down = std::string_view(prefix).ends_with("down_proj");
      const int n = down ? spec.width : spec.kv_heads * spec.head_dim;
      const int k = down ? spec.ffn : spec.width;
      const auto a = read_weight(source, prefix, n, k).dequantize();
      const auto b = read_weight(quantized, prefix, n, k);
      EXPECT_EQ(std::string(b.desc.name),
                spec.format == "bf16" ? "dense" : spec.format.substr(0, spec.format.find(':')));
      double error = 0, total = 0;
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < k; ++j) {
          const double want = a[size_t(i) * k + j];
          error += (b.at(i, j) - want) * (b.at(i, j) - want), total += want * want;
        }
      EXPECT_LE(std::sqrt(error / total), bound) << prefix;
    }
  }
}

}  // namespace
}  // namespace stepladder
