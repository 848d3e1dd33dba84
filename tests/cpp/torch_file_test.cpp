// pytorch_model.bin as data: tensors come back byte for byte, nothing in it is executed, and what
// is not a dictionary of tensors is refused by name.
#include <gtest/gtest.h>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/torch_file.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/torch_writer.h"

namespace stepladder {
namespace {

using testing::expect_refused;
using testing::Pickler;
using testing::torch_file;
using testing::TorchTensor;
using testing::zip_of;
using testing::ZipFile;

std::vector<StoredTensor> read(const std::string& bytes) {
  return read_torch_header(MemoryBytes(bytes, "model.bin"));
}

/// An archive around a pickle, with six numbers of 16 bits as storage "0".
std::string around(const std::string& pickle) {
  return zip_of({{"m/data.pkl", pickle}, {"m/data/0", "abcdefghijkl"}});
}

TEST(TorchFile, GivesBackEveryTensor) {
  const std::vector<TorchTensor> tensors = {
      {"fc.weight", "HalfStorage", {2, 3}, "abcdefghijkl"},
      {"fc.bias", "FloatStorage", {2}, "01234567"},
      {"layers.0.w", "BFloat16Storage", {1, 1, 4}, "ABCDEFGH"},
      {"d2t", "LongStorage", {1}, "nopqrstu"},
      {"t2d", "BoolStorage", {3}, "xyz"},
      {"none", "FloatStorage", {0, 4}, ""},
      {"scalar", "HalfStorage", {}, "vw"}};
  const std::map<std::string, std::string> types = {{"HalfStorage", "F16"},
                                                    {"FloatStorage", "F32"},
                                                    {"BFloat16Storage", "BF16"},
                                                    {"LongStorage", "I64"},
                                                    {"BoolStorage", "BOOL"}};
  for (const bool large : {false, true}) {
    const std::string file = torch_file(tensors, large);
    const auto found = read(file);
    ASSERT_EQ(found.size(), tensors.size());
    for (const StoredTensor& t : found) {
      const auto is = [&](const TorchTensor& other) { return other.name == t.name; };
      const auto& want = *std::find_if(tensors.begin(), tensors.end(), is);
      EXPECT_EQ(t.info.dtype, types.at(want.type));
      EXPECT_EQ(t.info.shape, want.shape);
      EXPECT_EQ(file.substr(t.offset, t.info.bytes), want.bytes) << t.name;
    }
  }
}

TEST(TorchFile, ReadsParametersOrderedDictionariesAndPartsOfAStorage) {
  Pickler p;
  p.global("collections", "OrderedDict").raw(")R(");
  p.text("whole").tensor("HalfStorage", "0", 6, 0, {6}, {1});
  p.text("part").global("torch._utils", "_rebuild_parameter").raw("(");
  p.tensor("HalfStorage", "0", 6, 2, {2, 2}, {2, 1}).raw("\x88").raw("}tR");
  p.text("epoch").number(7).text("name").text("x");
  // What a module's state has beside its tensors.
  p.raw("u}").text("_metadata").global("collections", "OrderedDict").raw(")Rsb.");
  const std::string file = around(p.out);
  const auto found = read(file);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].name, "part");
  EXPECT_EQ(file.substr(found[0].offset, found[0].info.bytes), "efghijkl");
  EXPECT_EQ(file.substr(found[1].offset, found[1].info.bytes), "abcdefghijkl");
}

TEST(TorchFile, NamesWhatItWouldHaveToExecute) {
  for (const auto& [module, name] : {std::pair{"os", "system"},
                                     {"builtins", "eval"},
                                     {"torch.nn.modules.linear", "Linear"},
                                     {"torch", "load"},
                                     {"collections", "Counter"}}) {
    Pickler p;
    p.global(module, name).raw("(").text("true").raw("tR.");
    expect_refused([&] { read(around(p.out)); }, Code::unsupported,
                   {"model.bin", std::string(module) + " " + name, "would execute"});
  }
}

TEST(TorchFile, RefusesWhatIsNoDictionaryOfTensors) {
  const auto refused = [](const std::string& file, Code code, std::vector<std::string> words) {
    SCOPED_TRACE(words[0]);
    words.push_back("model.bin");
    expect_refused([&] { read(file); }, code, words);
  };
  const auto pickled = [](const auto& fill) {
    Pickler p;
    fill(p);
    return around(p.out);
  };
  const auto one = [&](const std::string& key, int64_t elements, int64_t first,
                       const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return pickled([&](Pickler& p) {
      p.raw("}(").text("w").tensor("HalfStorage", key, elements, first, shape, strides).raw("u.");
    });
  };
  EXPECT_EQ(read(one("0", 6, 0, {2, 3}, {3, 1})).size(), 1u);
  refused(one("0", 6, 0, {3, 2}, {1, 3}), Code::unsupported, {"strides"});
  refused(one("1", 6, 0, {6}, {1}), Code::model_format, {"not in the archive", "\"w\""});
  refused(one("0", 7, 0, {7}, {1}), Code::model_format, {"larger than its bytes"});
  refused(one("0", 6, 1, {6}, {1}), Code::model_format, {"larger than its bytes"});
  refused(one("0", 6, 0, {1 << 30, 1 << 30, 1 << 30}, {1 << 30, 1 << 30, 1}), Code::unsupported,
          {"strides"});
  refused(one("0", 6, -1, {6}, {1}), Code::model_format, {"damaged"});
  refused(one("0", 6, 0, {-6}, {1}), Code::model_format, {"damaged"});
  refused(pickled([](Pickler& p) { p.number(5).raw("."); }), Code::unsupported, {"no dictionary"});
  refused(pickled([](Pickler& p) { p.raw("]."); }), Code::unsupported, {"instruction 93"});
  for (const char* cut :
       {"}", "", "t.", "u.", "q", "h\1.", "R.", "}(K", "X\xff\xff\xff\x7f", "\x8a\xff"})
    refused(pickled([&](Pickler& p) { p.raw(cut); }), Code::model_format, {"damaged"});
  refused(around("\x80\x04}."), Code::unsupported, {"protocol 4"});
  std::string deep = "\x80\x02)";
  for (int i = 0; i < 5000; ++i) deep += "\x85";
  refused(around(deep + "."), Code::model_format, {"damaged"});

  const std::string good = one("0", 6, 0, {6}, {1});
  refused(good.substr(0, good.size() / 2), Code::model_format, {"no ZIP archive"});
  refused("", Code::model_format, {"no ZIP archive"});
  refused(std::string("\x80\x02\x8a\x0a", 4) + std::string(100, 'x'), Code::model_format,
          {"no ZIP archive", "1.6"});
  refused(zip_of({{"m/data.pkl", "x", 8}}), Code::unsupported, {"compressed", "data.pkl"});
  refused(zip_of({{"m/other", "x"}}), Code::model_format, {"without data.pkl"});
  refused(zip_of({{"m/data.pkl", std::string(300 << 10, '}')}}), Code::model_format, {"at most"});
  refused(zip_of({{"m/data.pkl", "."}, {"m/byteorder", "big"}}), Code::unsupported, {"big-endian"});
  refused(zip_of({{"m/data.pkl", "."}, {"m/data.pkl", "."}}), Code::model_format, {"twice"});
}

TEST(TorchFile, StandsInForSafetensorsOfAHeadAndOfNothingElse) {
  testing::TempDir dir;
  testing::write_file(dir / "config.json", "{}");
  testing::write_file(dir / "pytorch_model.bin",
                      torch_file({{"fc.weight", "HalfStorage", {1, 2}, "abcd"}}));
  const auto head = open_head_checkpoint(dir.str());
  const int64_t shape[] = {1, 2};
  EXPECT_EQ(head->load_floats("fc.weight", shape)[0], from_f16(0x6261));
  EXPECT_EQ(head->need("fc.weight").file, dir / "pytorch_model.bin");
  expect_refused([&] { open_checkpoint(dir.str()); }, Code::unsupported, {"pytorch_model.bin"});
}

}  // namespace
}  // namespace stepladder
