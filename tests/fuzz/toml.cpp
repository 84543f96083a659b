// Text -> the reader of TOML. What it accepts has each key of a table once, in the
// order of the text, at places that the text has.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

#include "config/toml_document.h"
#include "fuzz/check.h"

namespace torchtitan::fuzz {
namespace {

using namespace config;

// That may stand for one of a text: ten of an escape sequence for two of a character.
constexpr int64_t kMostBytes = 5;

class Check {
 public:
  explicit Check(std::string_view text)
      : num_lines_(1 + std::count(text.begin(), text.end(), '\n')),
        num_bytes_(static_cast<int64_t>(text.size())) {}

  void table(const TomlTable& entries) const {
    std::set<std::string_view> keys;
    for (const TomlEntry& entry : entries) {
      require(keys.insert(entry.key).second, "a key is given once");
      place(entry.position);
      value(entry.value);
    }
    require(std::is_sorted(entries.begin(), entries.end(),
                           [](const TomlEntry& a, const TomlEntry& b) {
                             return a.position.line < b.position.line;
                           }),
            "keys are in the order of the text");
  }

 private:
  void value(const TomlValue& node) const {
    place(node.position);
    if (const auto* const array = std::get_if<TomlArray>(&node.value)) {
      for (const TomlValue& item : *array) value(item);
    } else if (const auto* const entries = std::get_if<TomlTable>(&node.value)) {
      table(*entries);
    }
  }

  void place(const Position& position) const {
    require(position.line >= 1 && position.line <= num_lines_, "a line of the text");
    require(position.column >= 1 && position.column <= kMostBytes * num_bytes_ + 1,
            "a column of the text");
  }

  int64_t num_lines_, num_bytes_;
};

}  // namespace
}  // namespace torchtitan::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace torchtitan;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    fuzz::Check(text).table(config::parse_toml(text, "run.toml"));
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
