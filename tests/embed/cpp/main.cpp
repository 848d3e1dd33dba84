// The example of the README, in a project that asks for no C++ standard of its own.
#include <stepladder/engine.h>

#include <cstdio>

namespace {

int made = 0;
void use(const std::vector<stepladder::Token>& tokens) { made += static_cast<int>(tokens.size()); }

}  // namespace

int main(int, char** arguments) {
  auto engine = stepladder::Engine::load(
      arguments[1], {.draft = stepladder::parse_draft("cast:int8:shared,lookup")});
  auto stream = engine->submit({.prompt = {1, 2, 3}, .max_tokens = 8, .ignore_eos = true});
  for (stepladder::Chunk chunk; stream->next(chunk);) use(chunk.tokens);
  std::printf("%d tokens\n", made);
  return made == 8 ? 0 : 1;
}
