// A JSON value: null, bool, 64-bit integer, double, UTF-8 string, array, object.
//
// Objects are kept sorted by name, so that equal values have equal texts. Numbers keep
// what they are: 1 is an integer, 1.0 a double; doubles are written with the fewest
// digits that read back to the same bits.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json_reader.h"

namespace torchtitan::base {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  Json() = default;
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  // The value as that type; std::invalid_argument names the type found instead.
  // as_double takes an integer too.
  bool as_bool() const;
  int64_t as_integer() const;
  double as_double() const;
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;
  Object& as_object();
  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

  // Member of an object; at() throws std::invalid_argument that names the key.
  const Json& at(std::string_view name) const;
  const Json* find(std::string_view name) const;  // nullptr when absent

  // Compact text. Throws std::invalid_argument for NaN and infinities.
  std::string dump() const;

  bool operator==(const Json& other) const { return value_ == other.value_; }

 private:
  std::string_view type_name() const;
  void dump_to(std::string& out) const;

  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object>
      value_;
};

// The one value of the text. Refuses duplicate names, beside what JsonReader refuses.
Json parse_json(std::string_view text, const JsonSource& source);

}  // namespace torchtitan::base
