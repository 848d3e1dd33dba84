#include "model/weights.h"

#include <algorithm>

namespace stepladder {
Act act_of(const Linear& linear, Act wanted) {
  if (linear.runs(wanted)) return wanted;
  return wanted == Act::a16 ? Act::a8 : Act::a16;
}

size_t Model::pass_bytes(Act act) const {
  size_t bytes = head_.pass_bytes(act_of(head_, act));
  for (const Layer& layer : layers_)
    for (const Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      bytes += l->pass_bytes(act_of(*l, act));
  return bytes;
}

int64_t Model::parameters() const {
  int64_t n = int64_t(config_.vocab) * config_.width * (config_.tied_head ? 1 : 2);
  for (const Layer& layer : layers_)
    for (const Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      n += int64_t(l->n()) * l->k();
  return n;
}

}  // namespace stepladder
