// What every refusal of bad input has to be: typed, telling, quick, and without a large allocation.
#pragma once

#include <gtest/gtest.h>
#include <malloc.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace stepladder::testing {

/// A line of /proc/self/status in bytes, such as "VmHWM" (the peak of resident memory).
inline size_t memory_status(std::string_view key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(std::string(key) + ":"))
      return std::stoull(line.substr(key.size() + 1)) * 1024;
  return 0;
}

/// Peak growth of resident memory while `run` runs.
inline size_t peak_growth(const std::function<void()>& run) {
  ::malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";  // resets the peak to what is resident now
  const size_t before = memory_status("VmRSS");
  run();
  const size_t peak = memory_status("VmHWM");
  return peak > before ? peak - before : 0;
}

inline const char* code_name(Code code) {
  switch (code) {
    case Code::invalid_argument:
      return "invalid_argument";
    case Code::unsupported:
      return "unsupported";
    case Code::io:
      return "io";
    case Code::model_format:
      return "model_format";
    case Code::vocab_mismatch:
      return "vocab_mismatch";
    case Code::out_of_memory:
      return "out_of_memory";
    case Code::cancelled:
      return "cancelled";
    case Code::internal:
      return "internal";
    case Code::device:
      return "device";
  }
  return "?";
}

/// `run` must throw Error(code) whose message has every one of `mentions`, in valid printable
/// text, within two seconds of work and with less than 64 MB of memory.
inline void expect_refused(const std::function<void()>& run, Code code,
                           const std::vector<std::string>& mentions) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const std::clock_t work_start = std::clock();
  std::string message;
  bool thrown = false;
  Code given = Code::internal;
  const size_t growth = peak_growth([&] {
    try {
      run();
    } catch (const Error& e) {
      thrown = true;
      given = e.code();
      message = e.what();
    }
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const double work = static_cast<double>(std::clock() - work_start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(thrown) << "was accepted";
  EXPECT_STREQ(code_name(given), code_name(code)) << message;
  for (const std::string& word : mentions)
    EXPECT_NE(message.find(word), std::string::npos) << "no " << word << " in: " << message;
  for (const char c : message)
    EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20) << "control character in: " << message;
  EXPECT_LT(message.size(), size_t{6000}) << message.substr(0, 200);
  // Two seconds of work; a loaded machine may take longer over them, but nothing may hang.
  EXPECT_LT(seconds, 30.0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(work, 2.0);
  EXPECT_LT(growth, size_t{64} << 20);
#else
  // Instrumented code is several times slower, and its shadow memory counts as resident.
  EXPECT_LT(work, 10.0);
  (void)growth;
#endif
}

}  // namespace stepladder::testing
