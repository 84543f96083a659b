#include "durability/corruption.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>
#include <random>

#include "base/errors.h"
#include "base/json.h"
#include "durability/checkpoint.h"
#include "storage/checkpoint_names.h"
#include "storage/safetensors_file.h"

namespace torchtitan::durability {
namespace {

namespace fs = std::filesystem;
using namespace storage;

constexpr int64_t kMostBytes = 1 << 24;
constexpr int64_t kLongRank = 0;
constexpr int64_t kGood = 1, kShort = 2, kLong = 8;  // steps; the last has a long file

void save(const std::string& folder, int64_t step) {
  const std::string id = base::message("000000000000000", step);
  const std::string staging = create_staging(folder, step, id);
  std::vector<FileRecord> files;
  for (int64_t rank = 0; rank < kNumRanks; ++rank) {
    files.push_back(write_part(staging, rank, step));
  }
  commit(folder, manifest_of(step, id, "", step, files), {});
}

// The step that a run would go on from; -1: wrong numbers were read.
std::optional<int64_t> load(const std::string& folder) {
  for (const auto& found : list_checkpoints(folder).checkpoints) {
    if (!found.manifest) continue;
    try {
      for (int64_t rank = 0; rank < kNumRanks; ++rank) {
        if (!load_part(found.path, *found.manifest, rank)) return -1;
      }
      return found.step;
    } catch (const std::invalid_argument&) {  // damaged
    }
  }
  return std::nullopt;
}

// A reader that trusts no checksum may accept it or not, but only with std exceptions.
void read_unverified(const std::string& path) {
  try {
    const SafetensorsReader reader(path);
    for (const auto& entry : reader.header().entries) {
      std::vector<std::byte> memory(static_cast<size_t>(entry.end - entry.begin));
      const std::vector<int64_t> zeros(entry.spec.shape.size(), 0);
      reader.read_box(entry.spec.name, {zeros, entry.spec.shape},
                      {.memory = memory, .shape = entry.spec.shape, .offset = zeros});
    }
  } catch (const std::invalid_argument&) {
  }
}

struct Target {
  std::string name;   // of the file
  size_t begin, end;  // bytes of it
};

// What is damaged of a step, by what it is: of its files the long one if there is one.
std::map<std::string, std::vector<Target>> targets_in(const std::string& path,
                                                      int64_t step) {
  std::map<std::string, std::vector<Target>> targets;
  for (const auto& entry : fs::directory_iterator(path)) {
    const std::string name = entry.path().filename();
    const size_t size = entry.file_size();
    if (name == kManifestName || name == kManifestChecksumName) {
      targets[name].push_back({name, 0, size});
      continue;
    }
    const int64_t rank = name[name.find('-') + 1] - '0';
    if (step == kLong && rank != kLongRank) continue;
    const auto numbers = static_cast<size_t>(numbers_of(step, rank));
    const size_t data = size - numbers * sizeof(int64_t);
    targets["header"].push_back({name, 0, data});
    targets["data"].push_back({name, data, size});
  }
  for (auto& [kind, list] : targets) {
    std::sort(list.begin(), list.end(),
              [](const Target& a, const Target& b) { return a.name < b.name; });
  }
  return targets;
}

// A good checkpoint and a newer one that is damaged.
struct Pair {
  Pair(const std::string& folder, int64_t damaged)
      : folder(folder), damaged(damaged), path(folder + "/" + step_name(damaged)) {
    save(folder, kGood);
    save(folder, damaged);
    check_whole();
    targets = targets_in(path, damaged);
  }

  void check_whole() const {
    base::check_value(load(folder) == damaged,
                      "the undamaged checkpoint is not accepted");
  }

  std::string folder;
  int64_t damaged;  // step
  std::string path;
  std::map<std::string, std::vector<Target>> targets;
};

}  // namespace

bool run_corruption(const std::string& folder, int64_t num_flips,
                    int64_t num_truncations, uint64_t seed) {
  const auto begin = std::chrono::steady_clock::now();
  std::mt19937_64 random(seed);
  const Pair short_files(folder + "/short", kShort), long_file(folder + "/long", kLong);
  std::map<std::string, int64_t> tried;
  int64_t num_missed = 0;
  for (int64_t trial = 0; trial < num_flips + num_truncations; ++trial) {
    // All kinds of damage once in ten times; a long file takes long.
    const Pair& pair = trial / 4 % 10 == 9 ? long_file : short_files;
    const auto kind = std::next(pair.targets.begin(), trial % 4);
    const Target& target = kind->second[random() % kind->second.size()];
    const std::string file = pair.path + "/" + target.name;
    const std::string good = read_text(file, kMostBytes);
    std::string bad = good;
    const bool flips = trial < num_flips;
    if (flips) {
      const size_t bit =
          target.begin * 8 + random() % ((target.end - target.begin) * 8);
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    } else {
      bad.resize(target.begin + random() % (target.end - target.begin));
    }
    ++tried[base::message(flips ? "flips_in_" : "truncations_of_", kind->first)];
    fs::remove(file);
    write_text(file, bad);
    if (load(pair.folder) != kGood) {
      ++num_missed;
      std::cerr << "missed: trial " << trial << " in " << target.name << '\n';
    }
    if (target.name.ends_with(".safetensors")) read_unverified(file);
    fs::remove(file);
    write_text(file, good);
  }
  short_files.check_whole();
  long_file.check_whole();
  base::Json::Object summary{{"seed", static_cast<int64_t>(seed)},
                             {"damages", num_flips + num_truncations},
                             {"missed", num_missed},
                             {"seconds", std::chrono::duration<double>(
                                             std::chrono::steady_clock::now() - begin)
                                             .count()}};
  for (const auto& [kind, count] : tried) summary.emplace(kind, count);
  std::cout << base::Json(std::move(summary)).dump() << std::endl;
  return num_missed == 0;
}

}  // namespace torchtitan::durability
