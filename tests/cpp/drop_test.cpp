// A format that is a folder in tests/drop and nothing else is cast, stored, loaded, drafted with
// and held to the exactness check; the cells of the other suites in this executable are made from
// it.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "api/draft_spec.h"
#include "backends/cpu/cpu_backend.h"
#include "model/unused.h"
#include "support/replay.h"

namespace stepladder {
namespace {

TEST(Drop, IsKnownByItsFolderAlone) {
  EXPECT_STREQ(format_named("w3a16").name, "w3a16");
  EXPECT_NE(quantized_formats().find("w3a16"), std::string::npos);
  EXPECT_EQ(with_defaults(parse_draft("cast:w3a16")[0]).tokens, 4);
  const auto cells = replay_cells();
  const auto count = [&](Act act, const std::string& stored, const std::string& cast) {
    return std::count_if(cells.begin(), cells.end(), [&](const Cell& c) {
      return c.act == act && c.spec.format == stored && c.cast == cast;
    });
  };
  EXPECT_EQ(count(Act::a16, "w3a16", ""), 1);
  EXPECT_EQ(count(Act::a8, "w3a16", ""), 1);
  EXPECT_EQ(count(Act::a16, "f16", "w3a16"), 1);
}

TEST(Drop, IsStoredReadAndSharesItsCopy) {
  const auto specs = tiny_formats();
  const auto spec = std::find_if(specs.begin(), specs.end(),
                                 [](const TinySpec& s) { return s.format == "w3a16"; });
  ASSERT_NE(spec, specs.end());
  const MemoryCheckpoint checkpoint = tiny_checkpoint(*spec);
  const std::string prefix = "model.layers.0.mlp.down_proj";
  EXPECT_STREQ(format_of(checkpoint, prefix).name, "w3a16");
  EXPECT_STREQ(read_weight(checkpoint, "lm_head", spec->vocab, spec->width).desc.name, "dense");
  EXPECT_EQ(unused_tensors(checkpoint, read_config(checkpoint)), "");
  // What it was made from, to half a step of 7 over a group.
  TinySpec source = *spec;
  source.format = "bf16";
  const CanonicalWeight w = read_weight(checkpoint, prefix, spec->width, spec->ffn);
  const CanonicalWeight from = read_weight(tiny_checkpoint(source), prefix, spec->width, spec->ffn);
  for (int r = 0; r < w.n; ++r)
    for (int i = 0; i < w.k; ++i)
      ASSERT_NEAR(w.at(r, i), from.at(r, i), w.scales[size_t(r) * (w.k / 32) + i / 32] * .5001);

  CpuBackend backend(available_isas().back(), 1);
  ModelOptions options;
  options.also_a8 = true, options.positions = 64;
  const Model model(backend, checkpoint, read_config(checkpoint), options);
  EXPECT_EQ(model.pass_bytes(Act::a8), model.pass_bytes(Act::a16));
}

}  // namespace
}  // namespace stepladder
