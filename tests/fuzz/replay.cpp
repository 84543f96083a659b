// Runs a fuzz target without libFuzzer:
//   replay_<target> --mutations N --seed S FOLDER..
// on every file of the folders, and on N changed ones: bits flipped, bytes deleted,
// repeated or replaced by those of another file. A finding ends the process.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

std::vector<Bytes> read_folder(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> files;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file),
                       std::istreambuf_iterator<char>());
  }
  return files;
}

// A start of safetensors files is a length; one that fits lets the change reach
// further.
void fit_length(Bytes& data, std::mt19937_64& random) {
  if (data.size() < 8 || random() % 2 == 0) return;
  size_t end = data.size();
  while (end > 8 && data[end - 1] != '}') --end;
  const uint64_t length = end - 8;
  for (size_t i = 0; i < 8; ++i) data[i] = static_cast<uint8_t>(length >> (8 * i));
}

void change(Bytes& data, const Bytes& other, std::mt19937_64& random) {
  const size_t at = data.empty() ? 0 : random() % data.size();
  const auto place = data.begin() + static_cast<ptrdiff_t>(at);
  const size_t count = std::min<size_t>(1 + random() % 16, data.size() - at);
  const auto behind = place + static_cast<ptrdiff_t>(count);
  switch (random() % 4) {
    case 0:
      if (!data.empty()) data[at] ^= static_cast<uint8_t>(1 << random() % 8);
      return;
    case 1: data.erase(place, behind); return;
    case 2: {
      const Bytes part(place, behind);
      data.insert(place, part.begin(), part.end());
      return;
    }
    default: {
      if (other.empty()) return;
      const size_t from = random() % other.size();
      const size_t length = std::min<size_t>(1 + random() % 64, other.size() - from);
      const auto begin = other.begin() + static_cast<ptrdiff_t>(from);
      const Bytes part(begin, begin + static_cast<ptrdiff_t>(length));
      data.erase(place, behind);
      data.insert(data.begin() + static_cast<ptrdiff_t>(at), part.begin(), part.end());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 5 || arguments[0] != "--mutations" ||
      arguments[2] != "--seed") {
    std::cerr << "expected --mutations N --seed S FOLDER..\n";
    return 2;
  }
  const uint64_t num_mutations = std::stoull(arguments[1]);
  std::mt19937_64 random(std::stoull(arguments[3]));
  std::vector<Bytes> corpus;
  for (size_t i = 4; i < arguments.size(); ++i) {
    for (Bytes& file : read_folder(arguments[i])) corpus.push_back(std::move(file));
  }
  if (corpus.empty()) {
    std::cerr << "the folders hold no files\n";
    return 2;
  }
  for (const Bytes& file : corpus) LLVMFuzzerTestOneInput(file.data(), file.size());
  for (uint64_t i = 0; i < num_mutations; ++i) {
    Bytes data = corpus[random() % corpus.size()];
    for (uint64_t number = 1 + random() % 3; number > 0; --number) {
      change(data, corpus[random() % corpus.size()], random);
    }
    fit_length(data, random);
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::cout << corpus.size() << " files and " << num_mutations << " changed ones\n";
  return 0;
}
