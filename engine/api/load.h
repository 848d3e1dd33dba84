// The engine over a backend that is already open: what Engine::load() and the tests call.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

/// Loads `directory` and the levels of `options` onto `backend`, which the engine then owns;
/// options.device and isa are the caller's business.
std::shared_ptr<Engine> load_engine(const std::string& directory, const Options& options,
                                    std::unique_ptr<Backend> backend);

}  // namespace stepladder
