#include "config/toml_document.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_config(py::module_ module) {
  using namespace config;
  py::class_<DateTime>(module, "DateTime", "A date or time, which no field takes.")
      .def_readonly("text", &DateTime::text);
  py::class_<TomlValue>(module, "TomlValue", "A value and where it was written.")
      .def_property_readonly("line", [](const TomlValue& v) { return v.position.line; })
      .def_property_readonly("column",
                             [](const TomlValue& v) { return v.position.column; })
      .def_readonly("value", &TomlValue::value,
                    "bool, int, float, str, DateTime, list of TomlValue, or, for a "
                    "table, list of TomlEntry");
  py::class_<TomlEntry>(module, "TomlEntry", "A key of a table, with its value.")
      .def_readonly("key", &TomlEntry::key)
      .def_property_readonly("line", [](const TomlEntry& e) { return e.position.line; })
      .def_property_readonly("column",
                             [](const TomlEntry& e) { return e.position.column; })
      .def_readonly("value", &TomlEntry::value);
  module.def("parse_toml", &parse_toml, py::arg("text"), py::kw_only(),
             py::arg("source"),
             "Parse a TOML 1.0 text into the entries of its top-level table.\n\n"
             "Raises ValueError \"source:line:column: reason\" at the first error of "
             "syntax; a key given twice is one.");
}

}  // namespace torchtitan::bindings
