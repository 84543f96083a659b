// A TOML text as a tree of values that know where they were written.
//
// The tree keeps what error messages need: the line and column of every key and every
// value. It does not know which keys or types are expected; Python's dataclasses do.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace torchtitan::config {

// First character of a key or value; both count from 1, columns in code points.
struct Position {
  int64_t line = 0;
  int64_t column = 0;
};

// A date, a time or both, as TOML writes it. No configuration field takes one.
struct DateTime {
  std::string text;
};

struct TomlEntry;
struct TomlValue;
using TomlArray = std::vector<TomlValue>;
using TomlTable = std::vector<TomlEntry>;  // in the order of their keys' positions

struct TomlValue {
  Position position;
  std::variant<bool, int64_t, double, std::string, DateTime, TomlArray, TomlTable>
      value;
};

struct TomlEntry {
  std::string key;
  Position position;  // of the key; in [a.b], of its part of the header
  TomlValue value;
};

// Parses a TOML 1.0 text (UTF-8). `source` names it in errors, e.g. the file's path.
//   returns  the entries of the top-level table
//   throws   std::invalid_argument "source:line:column: reason" at the first error of
//            syntax, a key or table given twice included
TomlTable parse_toml(std::string_view text, std::string_view source);

}  // namespace torchtitan::config
