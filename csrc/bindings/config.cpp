#include "config/toml_document.h"

#include "bindings/module.h"

namespace torchtitan::bindings {
namespace {

using namespace config;

// Keys of a table are unique, so Python sees it as a dict, in the order of the text.
py::dict table_to_dict(const TomlTable& table) {
  py::dict entries;
  for (const TomlEntry& entry : table) entries[py::str(entry.key)] = py::cast(entry);
  return entries;
}

py::object content(const TomlValue& value) {
  if (const auto* table = std::get_if<TomlTable>(&value.value)) {
    return table_to_dict(*table);
  }
  return py::cast(value.value);
}

}  // namespace

void bind_config(py::module_ module) {
  py::class_<DateTime>(module, "DateTime", "A date or time, which no field takes.")
      .def_readonly("text", &DateTime::text);
  py::class_<TomlValue>(module, "TomlValue", "A value and where it was written.")
      .def_property_readonly("line", [](const TomlValue& v) { return v.position.line; })
      .def_property_readonly("column",
                             [](const TomlValue& v) { return v.position.column; })
      .def_property_readonly(
          "value", &content,
          "bool, int, float, str, DateTime, a list of TomlValue, or, "
          "for a table, a dict of TomlEntry.");
  py::class_<TomlEntry>(module, "TomlEntry", "A key of a table and its value.")
      .def_property_readonly(
          "line", [](const TomlEntry& e) { return e.position.line; },
          "Line of the key.")
      .def_property_readonly("column",
                             [](const TomlEntry& e) { return e.position.column; })
      .def_readonly("value", &TomlEntry::value);
  module.def(
      "parse_toml",
      [](const py::bytes& text, const std::string& source) {
        return table_to_dict(parse_toml(std::string_view(text), source));
      },
      py::arg("text"), py::kw_only(), py::arg("source"),
      "Parse a TOML 1.0 text (UTF-8) into a dict of TomlEntry.\n\n"
      "Raises ValueError \"source:line:column: reason\" at the first error of syntax; a "
      "key given twice is one.");
}

}  // namespace torchtitan::bindings
