// Loading on any number of threads: the same bytes, the same errors, and nothing left behind.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <set>

#include "backends/cpu/cpu_backend.h"
#include "core/units.h"
#include "model/weights.h"
#include "support/far/far_backend.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

constexpr int kThreads[] = {1, 2, 7};

/// A backend that tells what its memory holds.
template <class Base>
class Kept : public Base {
 public:
  Kept() : Base("", 2) {}
  void* allocate(size_t bytes) override {
    blocks_.emplace_back(Base::allocate(bytes), bytes);
    return blocks_.back().first;
  }
  std::vector<std::vector<std::byte>> contents() {
    std::vector<std::vector<std::byte>> out;
    for (const auto& [memory, bytes] : blocks_) {
      out.emplace_back(bytes);
      this->read(out.back().data(), memory, bytes);
    }
    this->wait();
    return out;
  }

 private:
  std::vector<std::pair<void*, size_t>> blocks_;
};

ModelOptions options_for(int threads) {
  ModelOptions options;
  options.positions = 64, options.threads = threads;
  return options;
}

/// A model and two casts of it, read once.
template <class Base>
std::vector<std::vector<std::byte>> loaded(const Checkpoint& c, int threads) {
  Kept<Base> backend;
  const Cast casts[] = {{"mxfp4", "w8a16"}, {"w8a8", ""}};
  const auto models = load_models(backend, c, read_config(c), options_for(threads), casts);
  return backend.contents();
}

/// Heads of 20 put the borders of q, k and v into the middle of tiles, and the head takes many
/// units.
std::vector<TinySpec> specs() {
  std::vector<TinySpec> out = tiny_formats();
  for (TinySpec& spec : out) spec.vocab = 6000;
  for (const bool tied : {false, true}) {
    TinySpec odd{.family = "qwen2", .tied = tied};
    odd.width = 160, odd.heads = 8, odd.kv_heads = 1, odd.head_dim = 20, odd.vocab = 6000;
    out.push_back(odd);
  }
  return out;
}

TEST(Load, GivesTheSameBytesOnAnyNumberOfThreadsAndBackend) {
  for (const TinySpec& spec : specs()) {
    SCOPED_TRACE(spec.label());
    const MemoryCheckpoint c = tiny_checkpoint(spec);
    const auto wanted = loaded<CpuBackend>(c, 1);
    ASSERT_EQ(wanted.size(), 4u);  // what they share, and three models
    for (const int threads : {2, 7}) EXPECT_TRUE(loaded<CpuBackend>(c, threads) == wanted);
    for (const int threads : {1, 7}) EXPECT_TRUE(loaded<FarBackend>(c, threads) == wanted);
  }
}

TEST(Load, CastsOfOneReadAreThoseOfTheirOwn) {
  for (const TinySpec& spec : specs()) {
    SCOPED_TRACE(spec.label());
    const MemoryCheckpoint c = tiny_checkpoint(spec);
    const ModelConfig config = read_config(c);
    Kept<CpuBackend> backend;
    const auto stored = std::make_shared<const Model>(backend, c, config, options_for(2));
    for (const Cast& cast : {Cast{"mxfp4", "w8a16"}, Cast{"w8a8", ""}}) {
      ModelOptions options = options_for(2);
      options.cast = cast.cast, options.head = cast.head;
      const Model copy(backend, c, config, options, stored);
      EXPECT_EQ(copy.embedding().data, stored->embedding().data);
      const auto together = loaded<CpuBackend>(c, 2);
      EXPECT_TRUE(backend.contents().back() == together[cast.cast == "mxfp4" ? 2 : 3]);
    }
  }
}

/// A checkpoint in which something happens at the n-th read.
class Eventful : public Checkpoint {
 public:
  Eventful(const Checkpoint& inner, int at, std::function<void()> event)
      : inner_(inner), left_(at), event_(std::move(event)) {}
  const std::string& where() const override { return inner_.where(); }
  const nlohmann::json& config() const override { return inner_.config(); }
  const nlohmann::json& generation() const override { return inner_.generation(); }
  std::vector<std::string> names() const override { return inner_.names(); }
  const TensorInfo* find(std::string_view name) const override { return inner_.find(name); }
  void read_slice(std::string_view name, const Slice& slice,
                  std::span<std::byte> out) const override {
    if (--left_ == 0) event_();
    inner_.read_slice(name, slice, out);
  }
  int left() const { return left_; }

 private:
  const Checkpoint& inner_;
  mutable std::atomic<int> left_;
  std::function<void()> event_;
};

/// Loads on a backend that counts its memory, and expects to be refused and all of it given back.
template <class Load>
void expect_failure(Load&& load, Code code, const std::vector<std::string>& mentions) {
  for (const int threads : kThreads) {
    SCOPED_TRACE(threads);
    FarBackend backend("", 1);
    testing::expect_refused([&] { load(backend, threads); }, code, mentions);
    EXPECT_EQ(backend.held_bytes(), 0u);
    backend.wait();
  }
}

TEST(Load, AFileThatShrinksWhileItIsReadIsAnError) {
  const TinySpec spec{.layers = 4};
  const MemoryCheckpoint memory = tiny_checkpoint(spec);
  int reads = 0;
  {
    const Eventful counted(memory, 1 << 30, [] {});
    FarBackend backend("", 1);
    const Model model(backend, counted, read_config(memory), options_for(1));
    reads = (1 << 30) - counted.left();
  }
  ASSERT_GT(reads, 20);
  for (const int at : {1, reads / 2, reads * 3 / 4}) {
    SCOPED_TRACE(at);
    testing::TempDir folder;
    const std::string file = folder / "model/model.safetensors";
    write_checkpoint(memory, folder / "model");
    const auto size = std::filesystem::file_size(file);
    expect_failure(
        [&](Backend& backend, int threads) {
          std::filesystem::resize_file(file, size);
          const auto stored = open_checkpoint(folder / "model");
          const Eventful c(*stored, at, [&] { std::filesystem::resize_file(file, 4096); });
          Model(backend, c, read_config(c), options_for(threads));
        },
        Code::io, {file, "cut short", "tensor"});
  }
}

TEST(Load, StopsWhereProgressSaysSo) {
  const MemoryCheckpoint c = tiny_checkpoint({.layers = 4, .vocab = 6000});
  for (const int last : {1, 5, 12}) {
    int calls = 0;
    size_t before = 0;
    expect_failure(
        [&](Backend& backend, int threads) {
          calls = 0, before = 0;
          ModelOptions options = options_for(threads);
          options.progress = [&](size_t done, size_t total) {
            EXPECT_GT(done, before);
            EXPECT_LE(done, total);
            before = done;
            return ++calls < last;
          };
          Model(backend, c, read_config(c), options);
        },
        Code::cancelled, {"cancelled"});
    EXPECT_EQ(calls, last);
  }
}

TEST(Load, ProgressEndsWithEverything) {
  const MemoryCheckpoint c = tiny_checkpoint({.vocab = 6000});
  for (const int threads : kThreads) {
    size_t last = 0, whole = 1;
    ModelOptions options = options_for(threads);
    options.progress = [&](size_t done, size_t total) { return last = done, whole = total, true; };
    FarBackend backend("", 1);
    Model(backend, c, read_config(c), options);
    EXPECT_EQ(last, whole);
  }
}

void spoil(MemoryCheckpoint& c, const std::string& tensor, size_t element) {
  const TensorInfo info = *c.find(tensor);
  std::vector<uint16_t> codes(info.bytes / 2);
  c.read(tensor, std::as_writable_bytes(std::span(codes)));
  codes[element < codes.size() ? element : codes.size() - 1] = 0x7fc0;  // NaN
  c.add(tensor, info.dtype, info.shape, codes);
}

TEST(Load, AnErrorInTheLastMatrixEndsIt) {
  MemoryCheckpoint c = tiny_checkpoint({.layers = 3, .vocab = 6000});
  spoil(c, "lm_head.weight", SIZE_MAX);
  expect_failure([&](Backend& backend,
                     int threads) { Model(backend, c, read_config(c), options_for(threads)); },
                 Code::model_format, {"lm_head.weight", "element 767999 "});
}

// A scale that is finite may still take its weights out of the range of f32, which a cast meets.
TEST(Load, AWeightBeyondTheRangeOfFloatsIsTheFilesFault) {
  MemoryCheckpoint c = tiny_checkpoint({.format = "w8a16", .layers = 2});
  const std::string tensor = "model.layers.1.self_attn.o_proj.weight_scale";
  const TensorInfo info = *c.find(tensor);
  std::vector<float> scales(size_t(info.shape[0]), 1.f);
  scales[5] = 3.4e38f;
  c.add(tensor, "F32", info.shape, scales);
  const Cast casts[] = {{"mxfp4", ""}};
  for (const size_t count : {0, 1})
    expect_failure(
        [&](Backend& backend, int threads) {
          load_models(backend, c, read_config(c), options_for(threads), std::span(casts, count));
        },
        Code::model_format, {tensor, "scale 5 ", "no float"});
}

// Neither embedding nor head has a bias in any family, whichever of the two is read.
TEST(Load, ABiasOfEmbeddingOrHeadIsRefusedUnlessItIsZero) {
  for (const bool tied : {false, true})
    for (const char* name : {"model.embed_tokens.bias", "lm_head.bias"})
      for (const float value : {0.f, 1.f}) {
        MemoryCheckpoint c = tiny_checkpoint({.layers = 1, .tied = tied});
        const int vocab = read_config(c).vocab;
        c.add(name, "F32", {vocab}, std::vector<float>(size_t(vocab), value));
        const auto load = [&](Backend& backend, int threads) {
          Model(backend, c, read_config(c), options_for(threads));
        };
        if (value != 0) {
          expect_failure(load, Code::model_format, {name, "no bias there"});
        } else {
          CpuBackend backend("portable", 1);
          load(backend, 1);
        }
      }
}

TEST(Load, OfSeveralErrorsTheFirstIsTold) {
  MemoryCheckpoint c = tiny_checkpoint({.layers = 3, .vocab = 6000});
  spoil(c, "model.layers.1.mlp.up_proj.weight", 300);
  spoil(c, "model.layers.1.mlp.down_proj.weight", 0);
  spoil(c, "model.layers.2.self_attn.q_proj.weight", 0);
  for (int i = 0; i < 10; ++i)
    expect_failure([&](Backend& backend,
                       int threads) { Model(backend, c, read_config(c), options_for(threads)); },
                   Code::model_format, {"model.layers.1.mlp.up_proj.weight", "element 300 "});
}

TEST(Load, RefusesWrongShapesBeforeItReadsWeights) {
  MemoryCheckpoint c = tiny_checkpoint({.layers = 3});
  c.add("lm_head.weight", "BF16", {3, 128}, std::vector<uint16_t>(3 * 128));
  size_t told = 0;
  expect_failure(
      [&](Backend& backend, int threads) {
        ModelOptions options = options_for(threads);
        options.progress = [&](size_t, size_t) { return ++told > 0; };
        Model(backend, c, read_config(c), options);
      },
      Code::model_format, {"lm_head.weight", "[3, 128]"});
  EXPECT_EQ(told, 0u);
}

TEST(Units, AreAllDoneAndToldOnce) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int>> done(1000);
    std::set<size_t> told;
    run_units(
        pool, done.size(),
        [&](size_t unit, int thread) {
          EXPECT_LT(thread, threads);
          ++done[unit];
        },
        [&](size_t unit) {
          EXPECT_EQ(done[unit], 1);
          EXPECT_TRUE(told.insert(unit).second);
        });
    EXPECT_EQ(told.size(), done.size());
    for (const auto& n : done) EXPECT_EQ(n, 1);
    run_units(pool, 0, [](size_t, int) { ADD_FAILURE(); }, [](size_t) { ADD_FAILURE(); });
  }
}

TEST(Units, TheFirstErrorIsThrownAndNothingBeginsAfterIt) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    for (int round = 0; round < 50; ++round) {
      std::atomic<int> begun{0};
      try {
        run_units(
            pool, 100000,
            [&](size_t unit, int) {
              ++begun;
              if (unit >= 20) throw unit;
            },
            [](size_t) {});
        ADD_FAILURE() << "did not throw";
      } catch (size_t unit) {
        EXPECT_EQ(unit, 20u);
      }
      EXPECT_LE(begun, 20 + threads);
    }
  }
}

TEST(Units, WhatTellingThrowsGoesBeforeErrors) {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    EXPECT_THROW(run_units(
                     pool, 1000, [](size_t, int) {}, [](size_t) { throw std::string("enough"); }),
                 std::string);
  }
}

}  // namespace
}  // namespace stepladder
