// How much memory the machine has to give.
#pragma once

#include <cstddef>

namespace stepladder {

/// Bytes that can be had now without swapping, by the machine and by this process's control
/// group; the largest size_t where the system does not say.
size_t available_host_bytes();

}  // namespace stepladder
