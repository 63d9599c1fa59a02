// Runs a fuzz target without libFuzzer: fuzz_artifact SECONDS SEED PATH...
// Replays every file of the paths, then mutates them for SECONDS. The input under test lies in
// $TMPDIR/autodeploy_fuzz_PID.json, and stays there after a crash.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "runtime/fuzz/mutate_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::vector<std::string> read_corpus(int argc, char** argv) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  for (int i = 3; i < argc; ++i) {
    if (fs::is_directory(argv[i])) {
      for (const auto& entry : fs::recursive_directory_iterator(argv[i])) {
        if (entry.is_regular_file() && entry.path().extension() == ".json") files.push_back(entry.path());
      }
    } else {
      files.emplace_back(argv[i]);
    }
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> corpus;
  for (const fs::path& f : files) {
    std::ifstream in(f, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void run(const std::string& input) {
  // Written before, so that it is there after a crash.
  static const std::string path = [] {
    const char* dir = std::getenv("TMPDIR");
    return std::string(dir ? dir : "/tmp") + "/autodeploy_fuzz_" + std::to_string(getpid()) + ".json";
  }();
  std::ofstream(path, std::ios::binary | std::ios::trunc) << input;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: fuzz_artifact SECONDS SEED PATH...\n");
    return 2;
  }
  const double seconds = std::atof(argv[1]);
  std::mt19937_64 rng(std::strtoull(argv[2], nullptr, 10));
  std::vector<std::string> pool = read_corpus(argc, argv);
  if (pool.empty()) {
    std::fprintf(stderr, "fuzz_artifact: expected at least one file, found none\n");
    return 2;
  }
  const size_t seeds = pool.size();
  for (const std::string& input : pool) run(input);
  const auto start = std::chrono::steady_clock::now();
  size_t count = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
    const std::string input = autodeploy::fuzz::mutate_json(pool[rng() % pool.size()], rng);
    run(input);
    ++count;
    // Some mutants are mutated further.
    if (rng() % 8 == 0) {
      if (pool.size() < seeds * 8)
        pool.push_back(input);
      else
        pool[seeds + rng() % (pool.size() - seeds)] = input;
    }
  }
  std::printf("fuzz_artifact: %zu seeds and %zu mutants\n", seeds, count);
  return 0;
}
