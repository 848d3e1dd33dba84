// What can be told of a checkpoint from its headers and config alone.
#include "api/plan.h"
#include "backends/backend.h"
#include "core/error.h"
#include "core/thread_pool.h"

namespace stepladder {
namespace {

/// The format of a matrix's weights; "?" for one whose layout no format claims.
std::string stored_format(const Checkpoint& checkpoint, const std::string& prefix) {
  try {
    const WeightFormat& format = format_of(checkpoint, prefix);
    if (std::string_view(format.name) != "dense") return format.name;
    const TensorInfo& t = checkpoint.need(prefix + ".weight");
    return t.dtype == "BF16"  ? "bf16"
           : t.dtype == "F16" ? "f16"
           : t.dtype == "F32" ? "f32"
                              : t.dtype;
  } catch (const Error& e) {
    if (e.code() != Code::unsupported) throw;
    return "?";
  }
}

}  // namespace

Info inspect(const std::string& directory) {
  const auto checkpoint = open_checkpoint(directory);
  const ModelConfig c = read_config(*checkpoint);
  Info info;
  info.backend = open_backend({.device = Options{}.device, .threads = 1})->name();
  info.threads = usable_cores();
  info.architecture = c.architecture;
  info.model_context = info.context = c.max_context();
  info.layers = c.layers, info.width = c.width;
  const int64_t q = int64_t(c.heads) * c.head_dim, kv = int64_t(c.kv_heads) * c.head_dim,
                w = c.width;
  info.parameters = c.layers * (w * (2 * q + 2 * kv) + 3 * w * c.ffn) +
                    int64_t(c.vocab) * w * (c.tied_head ? 1 : 2);
  info.end_tokens = c.end_tokens, info.notes = c.notes;
  info.vocab = real_vocab(directory, c, info.notes);
  for (const std::string& name : checkpoint->names())
    info.total_bytes += checkpoint->find(name)->bytes;

  LevelInfo level;
  level.name = "target";
  const TensorNames& names = *c.family->names;
  level.format = stored_format(*checkpoint, names.of_layer(0, names.q));
  level.head = stored_format(*checkpoint, c.tied_head ? c.embedding : names.head);
  level.weight_bytes = info.total_bytes;
  info.levels.push_back(std::move(level));
  return info;
}

}  // namespace stepladder
