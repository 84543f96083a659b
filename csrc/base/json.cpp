#include "base/json.h"

#include <array>
#include <charconv>
#include <cmath>

#include "base/errors.h"

namespace torchtitan::base {
namespace {

void dump_string(const std::string& value, std::string& out) {
  constexpr std::string_view kHex = "0123456789abcdef";
  out.push_back('"');
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (byte < 0x20) {
      out.append("\\u00");
      out.push_back(kHex[byte >> 4]);
      out.push_back(kHex[byte & 15]);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

void dump_double(double value, std::string& out) {
  check_value(std::isfinite(value), "json: ", value, " has no JSON form");
  std::array<char, 32> buffer;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  const std::string_view text(buffer.data(), static_cast<size_t>(end - buffer.data()));
  out.append(text);
  // Without a point or an exponent it would read back as an integer.
  if (text.find_first_of(".e") == std::string_view::npos) out.append(".0");
}

Json read_value(JsonReader& reader) {
  switch (reader.peek()) {
    case JsonKind::kNull: reader.read_null(); return Json();
    case JsonKind::kBool: return Json(reader.read_bool());
    case JsonKind::kString: return Json(reader.read_string());
    case JsonKind::kNumber:
      return std::visit([](auto number) { return Json(number); }, reader.read_number());
    case JsonKind::kArray: {
      Json::Array array;
      reader.begin_array();
      while (reader.next_element()) array.push_back(read_value(reader));
      return Json(std::move(array));
    }
    case JsonKind::kObject: break;
  }
  Json::Object object;
  reader.begin_object();
  while (auto name = reader.next_name()) {
    const auto [place, is_new] = object.try_emplace(std::move(*name));
    if (!is_new) reader.fail_duplicate(place->first);
    place->second = read_value(reader);
  }
  return Json(std::move(object));
}

}  // namespace

std::string_view Json::type_name() const {
  constexpr std::array<std::string_view, 7> kNames{
      "null", "a bool", "an integer", "a number", "a string", "an array", "an object"};
  return kNames[value_.index()];
}

bool Json::as_bool() const {
  const bool* const value = std::get_if<bool>(&value_);
  check_value(value != nullptr, "expected a bool, found ", type_name());
  return *value;
}

int64_t Json::as_integer() const {
  const int64_t* const value = std::get_if<int64_t>(&value_);
  check_value(value != nullptr, "expected an integer, found ", type_name());
  return *value;
}

double Json::as_double() const {
  if (const int64_t* const value = std::get_if<int64_t>(&value_)) {
    return static_cast<double>(*value);
  }
  const double* const value = std::get_if<double>(&value_);
  check_value(value != nullptr, "expected a number, found ", type_name());
  return *value;
}

const std::string& Json::as_string() const {
  const std::string* const value = std::get_if<std::string>(&value_);
  check_value(value != nullptr, "expected a string, found ", type_name());
  return *value;
}

const Json::Array& Json::as_array() const {
  const Array* const value = std::get_if<Array>(&value_);
  check_value(value != nullptr, "expected an array, found ", type_name());
  return *value;
}

const Json::Object& Json::as_object() const {
  const Object* const value = std::get_if<Object>(&value_);
  check_value(value != nullptr, "expected an object, found ", type_name());
  return *value;
}

Json::Object& Json::as_object() {
  Object* const value = std::get_if<Object>(&value_);
  check_value(value != nullptr, "expected an object, found ", type_name());
  return *value;
}

const Json* Json::find(std::string_view name) const {
  const Object& object = as_object();
  const auto place = object.find(name);
  return place == object.end() ? nullptr : &place->second;
}

const Json& Json::at(std::string_view name) const {
  const Json* const value = find(name);
  check_value(value != nullptr, "missing key \"", name, '"');
  return *value;
}

void Json::dump_to(std::string& out) const {
  if (is_null()) {
    out.append("null");
  } else if (const bool* const truth = std::get_if<bool>(&value_)) {
    out.append(*truth ? "true" : "false");
  } else if (const int64_t* const integer = std::get_if<int64_t>(&value_)) {
    out.append(std::to_string(*integer));
  } else if (const double* const real = std::get_if<double>(&value_)) {
    dump_double(*real, out);
  } else if (const std::string* const text = std::get_if<std::string>(&value_)) {
    dump_string(*text, out);
  } else if (const Array* const array = std::get_if<Array>(&value_)) {
    out.push_back('[');
    for (const Json& element : *array) {
      if (&element != &array->front()) out.push_back(',');
      element.dump_to(out);
    }
    out.push_back(']');
  } else {
    char separator = '{';
    for (const auto& [name, value] : as_object()) {
      out.push_back(separator);
      separator = ',';
      dump_string(name, out);
      out.push_back(':');
      value.dump_to(out);
    }
    out.append(separator == '{' ? "{}" : "}");
  }
}

std::string Json::dump() const {
  std::string out;
  dump_to(out);
  return out;
}

Json parse_json(std::string_view text, const JsonSource& source) {
  JsonReader reader(text, source);
  Json value = read_value(reader);
  reader.finish();
  return value;
}

}  // namespace torchtitan::base
