// Gives libFuzzer the seeds: writes them into a folder beside the program and names that folder as
// one more corpus.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "fuzz.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  namespace fs = std::filesystem;
  static std::string folder;
  static std::vector<char*> arguments;
  folder = std::string((*argv)[0]) + ".corpus";
  fs::create_directories(folder);
  int number = 0;
  for (const std::string& seed : stepladder::fuzz::seeds())
    std::ofstream(fs::path(folder) / ("seed-" + std::to_string(number++)), std::ios::binary)
        << seed;
  arguments.assign(*argv, *argv + *argc);
  arguments.push_back(folder.data());
  arguments.push_back(nullptr);
  *argc += 1;
  *argv = arguments.data();
  return 0;
}
