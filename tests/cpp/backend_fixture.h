// What the backend's tests share: a backend for every instruction set and thread count, memory in
// it that is given back at the end, and random numbers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/memory.h"

namespace stepladder::test {

constexpr double kUnit32 = 0x1p-24;  // largest relative error of rounding to f32
/// Largest relative error of rounding to a 16-bit type.
inline double unit16(DType t) { return t == DType::bf16 ? 0x1p-8 : 0x1p-11; }
/// What rounding may add to a value however small: half the smallest subnormal, or for dot
/// products of bf16, whose instruction takes subnormals as zeros, the smallest normal number.
inline double floor16(DType t) { return t == DType::bf16 ? 0x1p-126 : 0x1p-25; }

struct Cell {
  std::string isa;
  int threads;
};
inline std::ostream& operator<<(std::ostream& o, const Cell& c) {
  return o << c.isa << ", threads " << c.threads;
}
inline std::vector<Cell> cells() {
  std::vector<Cell> out;
  for (const std::string& isa : available_isas())
    for (int threads : {1, 2}) out.push_back({isa, threads});
  return out;
}
inline std::string cell_name(const ::testing::TestParamInfo<Cell>& info) {
  return info.param.isa + "_" + std::to_string(info.param.threads);
}

/// A backend and what was allocated in it.
template <class B>
class MachineOf {
 public:
  explicit MachineOf(std::unique_ptr<B> backend) : backend_(std::move(backend)) {}
  ~MachineOf() {
    for (auto& [memory, bytes] : blocks_) backend_->release(memory, bytes);
  }
  MachineOf(const MachineOf&) = delete;
  MachineOf& operator=(const MachineOf&) = delete;

  Backend& backend() { return *backend_; }
  B* operator->() { return backend_.get(); }

  void* bytes(size_t n) {
    blocks_.emplace_back(backend_->allocate(n), n);
    return blocks_.back().first;
  }
  template <class T>
  T* zeros(size_t n) {
    return static_cast<T*>(bytes(n * sizeof(T)));
  }
  template <class T>
  T* put(const std::vector<T>& v) {
    T* to = zeros<T>(v.size());
    backend_->upload(to, v.data(), v.size() * sizeof(T));
    return to;
  }
  template <class T>
  T* put(T v) {
    return put(std::vector<T>{v});
  }
  template <class T>
  std::vector<T> get(const T* from, size_t n) {
    std::vector<T> v(n);
    backend_->read(v.data(), from, n * sizeof(T));
    backend_->wait();
    return v;
  }
  Tensor tensor(DType t, int64_t rows, int64_t cols) {
    Tensor out{nullptr, t, rows, cols};
    out.data = bytes(out.bytes());
    return out;
  }
  template <class T>
  Tensor tensor(DType t, int64_t rows, int64_t cols, const std::vector<T>& v) {
    return {put(v), t, rows, cols};
  }
  Rows rows(int capacity, int depth, int sequences) {
    Arena measure;
    take_rows(measure, capacity, depth, sequences);
    Arena arena(bytes(measure.peak()), measure.peak());
    return take_rows(arena, capacity, depth, sequences);
  }
  Live live(int count, int capacity) { return {put<int32_t>(count), nullptr, capacity}; }

 private:
  std::unique_ptr<B> backend_;
  std::vector<std::pair<void*, size_t>> blocks_;
};

class Machine : public MachineOf<CpuBackend> {
 public:
  Machine(const std::string& isa, int threads)
      : MachineOf(std::make_unique<CpuBackend>(isa, threads)) {}
  explicit Machine(const Cell& c) : Machine(c.isa, c.threads) {}
};

inline std::vector<float> normal(std::mt19937& g, size_t n, float sigma = 1.f) {
  std::normal_distribution<float> d(0.f, sigma);
  std::vector<float> v(n);
  for (float& x : v) x = d(g);
  return v;
}
inline std::vector<uint16_t> to_16s(DType t, const std::vector<float>& v) {
  std::vector<uint16_t> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) out[i] = to_16(t, v[i]);
  return out;
}
inline int pick(std::mt19937& g, int lo, int hi) {
  return std::uniform_int_distribution<int>(lo, hi)(g);
}

class CellTest : public ::testing::TestWithParam<Cell> {};

}  // namespace stepladder::test
