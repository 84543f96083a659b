#include "config/toml_document.h"

#include <toml++/toml.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "base/errors.h"
#include "config/toml_characters.h"

namespace torchtitan::config {
namespace {

Position position_of(const toml::source_region& region) {
  return {.line = static_cast<int64_t>(region.begin.line),
          .column = static_cast<int64_t>(region.begin.column)};
}

template <class DateOrTime>
DateTime date_time(const DateOrTime& value) {
  std::ostringstream text;
  text << value;
  return {text.str()};
}

TomlTable convert(const toml::table& table);

TomlValue convert(const toml::node& node) {
  TomlValue result{.position = position_of(node.source()), .value = {}};
  switch (node.type()) {
    case toml::node_type::boolean: result.value = node.as_boolean()->get(); break;
    case toml::node_type::integer: result.value = node.as_integer()->get(); break;
    case toml::node_type::floating_point:
      result.value = node.as_floating_point()->get();
      break;
    case toml::node_type::string: result.value = node.as_string()->get(); break;
    case toml::node_type::date: result.value = date_time(node.as_date()->get()); break;
    case toml::node_type::time: result.value = date_time(node.as_time()->get()); break;
    case toml::node_type::date_time:
      result.value = date_time(node.as_date_time()->get());
      break;
    case toml::node_type::array: {
      TomlArray items;
      for (const toml::node& item : *node.as_array()) items.push_back(convert(item));
      result.value = std::move(items);
      break;
    }
    case toml::node_type::table: result.value = convert(*node.as_table()); break;
    case toml::node_type::none:
      throw std::logic_error("parse_toml: a parsed document holds a node of no type");
  }
  return result;
}

TomlTable convert(const toml::table& table) {
  TomlTable entries;
  for (const auto& [key, node] : table) {
    entries.push_back({.key = std::string(key.str()),
                       .position = position_of(key.source()),
                       .value = convert(node)});
  }
  // toml++ sorts keys by name; errors read better in the order of the file.
  std::ranges::stable_sort(entries, {}, [](const TomlEntry& entry) {
    return std::tuple(entry.position.line, entry.position.column);
  });
  return entries;
}

}  // namespace

TomlTable parse_toml(std::string_view text, std::string_view source) {
  const std::string safe = with_safe_characters(text, source);
  try {
    return convert(static_cast<const toml::table&>(toml::parse(safe)));
  } catch (const toml::parse_error& error) {
    const Position at = position_of(error.source());
    throw std::invalid_argument(
        base::message(source, ":", at.line, ":", at.column, ": ", error.description()));
  }
}

}  // namespace torchtitan::config
