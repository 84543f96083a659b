// durability_trials kills      --count 300 --seed 1 [--folder F]
// durability_trials corruption --flips 1000 --truncations 200 --seed 1 [--folder F]
//
// Works in a new folder below F, which is gone at the end. By default F is in memory
// where it can be: what a killed process has written is there whether it was synced or
// not. The exit status is 0 only if nothing was lost; one line of JSON says more.
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>

#include "base/errors.h"
#include "durability/corruption.h"
#include "durability/kills.h"

namespace {

using Options = std::map<std::string, std::string>;

int64_t number_of(const Options& options, const std::string& name) {
  const std::string& text = options.at(name);
  int64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  torchtitan::base::check_value(
      error == std::errc() && end == text.data() + text.size() && number >= 0, name,
      ": expected a number, found \"", text, '"');
  return number;
}

std::string default_folder() {
  constexpr const char* kInMemory = "/dev/shm";
  return ::access(kInMemory, W_OK) == 0
             ? kInMemory
             : std::filesystem::temp_directory_path().string();
}

int run(const std::string& what, Options options, int argc, char** argv) {
  using torchtitan::base::check_value;
  for (int i = 2; i < argc; i += 2) {
    check_value(options.contains(argv[i]) && i + 1 < argc,
                "unknown or incomplete option ", argv[i]);
    options[argv[i]] = argv[i + 1];
  }
  std::string folder = options.at("--folder") + "/trialsXXXXXX";
  check_value(::mkdtemp(folder.data()) != nullptr, folder, ": ", std::strerror(errno));
  const auto seed = static_cast<uint64_t>(number_of(options, "--seed"));
  const bool passed = what == "kills" ? torchtitan::durability::run_kills(
                                            folder, number_of(options, "--count"), seed)
                                      : torchtitan::durability::run_corruption(
                                            folder, number_of(options, "--flips"),
                                            number_of(options, "--truncations"), seed);
  std::filesystem::remove_all(folder);
  return passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  Options options{{"--seed", "1"}, {"--folder", default_folder()}};
  if (what == "kills") {
    options.emplace("--count", "300");
  } else if (what == "corruption") {
    options.emplace("--flips", "1000");
    options.emplace("--truncations", "200");
  } else {
    std::cerr << "expected kills or corruption, found \"" << what << "\"\n";
    return 2;
  }
  try {
    return run(what, std::move(options), argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "durability_trials: " << error.what() << '\n';
    return 2;
  }
}
