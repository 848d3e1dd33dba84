// Any text as a tokenizer.json: refused with Error(model_format), or a list of tokens no longer
// than the text justifies.
#include "core/error.h"
#include "fuzz.h"
#include "io/vocabulary.h"

using namespace stepladder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryBytes file({reinterpret_cast<const char*>(data), size}, "fuzz");
  try {
    const std::vector<std::string> tokens = parse_vocabulary(file);
    fuzz::require(tokens.size() <= 65536 + 4 * size, "the list is no longer than justified");
    size_t bytes = 0;
    for (const std::string& token : tokens) bytes += token.size();
    fuzz::require(bytes <= size, "every token stands in the text");
  } catch (const Error& e) {
    fuzz::require(e.code() == Code::model_format, "a bad tokenizer is a model_format error");
    fuzz::require(std::string(e.what()).size() < 10000, "messages are short");
  }
  return 0;
}

std::vector<std::string> fuzz::seeds() {
  return {
      R"({"version":"1.0","added_tokens":[{"id":2,"content":"<s>","special":true}],"model":)"
      R"({"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}})",
      R"({"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["x",-1.5],["y",-2]]},)"
      R"("added_tokens":[]})",
      R"({"truncation":null,"model":{"vocab":{}},"added_tokens":[{"content":"z","id":7}]})",
  };
}
