// The checks a request passes before it may queue.
#pragma once

#include "stepladder/engine.h"

namespace stepladder {

constexpr int kMaxLogprobs = 20;

struct RequestLimits {
  int vocab = 0;          // tokens a request may name
  int context = 0;        // tokens a sequence may hold
  int model_context = 0;  // what the context could be raised to; for the message
};

/// How many entries the lists of a request have.
struct RequestCounts {
  size_t prompt = 0, stop_token_ids = 0, logit_bias = 0;
};

/// Throws Error(invalid_argument) naming a list with more entries than any request may have: to be
/// asked before a list of unknown origin is copied.
void check_counts(const RequestCounts&, const RequestLimits&);
/// Throws Error(invalid_argument) naming the field, its value and the allowed range.
void check_request(const Request&, const RequestLimits&);

}  // namespace stepladder
