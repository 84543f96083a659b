#include "base/json.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace torchtitan::base {
namespace {

Json parse(std::string_view text) {
  return parse_json(text, {.name = "x.json", .max_depth = 8});
}

std::string error_of(std::string_view text) {
  try {
    parse(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Json, ReadsEveryKindOfValue) {
  const Json value = parse(
      " {\"a\": [null, true, false, -7, 2.5, \"x\"],\r\n\t\"b\": {}, \"c\": []} ");
  const Json::Array expected{Json(), true, false, -7, 2.5, "x"};
  EXPECT_EQ(value.at("a"), Json(expected));
  EXPECT_TRUE(value.at("b").as_object().empty());
  EXPECT_TRUE(value.at("c").as_array().empty());
  EXPECT_EQ(value.find("d"), nullptr);
}

TEST(Json, TellsIntegersFromDoubles) {
  EXPECT_EQ(parse("9223372036854775807").as_integer(),
            std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parse("-9223372036854775808").as_integer(),
            std::numeric_limits<int64_t>::min());
  EXPECT_THROW(parse("1.0").as_integer(), std::invalid_argument);
  EXPECT_EQ(parse("1").as_double(), 1.0);
  EXPECT_EQ(parse("1e2").dump(), "100.0");
  EXPECT_TRUE(std::signbit(parse("-0").as_double()));
}

TEST(Json, DecodesEscapesAndSurrogatePairs) {
  EXPECT_EQ(parse(R"("\"\\\/\b\f\n\r\t\u0041\u00e9\u20ac\ud83d\ude00")").as_string(),
            "\"\\/\b\f\n\r\tA\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST(Json, DumpsSortedAndCompactAndReadsItsOwnText) {
  const Json value =
      parse(R"({"b": "\u0001\"", "a": [1, 1.0, 1e300, -0.0, null, true]})");
  const std::string text = value.dump();
  EXPECT_EQ(text, "{\"a\":[1,1.0,1e+300,-0.0,null,true],\"b\":\"\\u0001\\\"\"}");
  EXPECT_EQ(parse(text), value);
  EXPECT_EQ(parse("{}").dump(), "{}");
}

TEST(Json, KeepsEveryBitOfADouble) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const auto value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    EXPECT_EQ(std::bit_cast<uint64_t>(parse(Json(value).dump()).as_double()),
              std::bit_cast<uint64_t>(value));
  }
  EXPECT_THROW(Json(std::nan("")).dump(), std::invalid_argument);
}

TEST(Json, NamesLineAndColumnOfAMistake) {
  EXPECT_EQ(error_of("{\n  \"a\": x}"), "x.json:2:8: expected a value, found 'x'");
  EXPECT_EQ(error_of("[1 2]"), "x.json:1:4: expected ',' or ']', found '2'");
  EXPECT_EQ(error_of("{\"a\":1,\"a\":2}"), "x.json:1:12: duplicate name \"a\"");
  EXPECT_EQ(error_of("[[[[[[[[[1]]]]]]]]]"),
            "x.json:1:9: expected at most 8 levels, found '['");
  EXPECT_EQ(error_of("[9223372036854775808]"),
            "x.json:1:2: expected an integer of 64 bits, found '9'");
}

TEST(Json, RefusesWhatIsNotJson) {
  const std::string_view bad[] = {"",
                                  " ",
                                  "{",
                                  "}",
                                  "[",
                                  "]",
                                  "[1,]",
                                  "{\"a\":1,}",
                                  "{,}",
                                  "[,1]",
                                  "{\"a\" 1}",
                                  "{a:1}",
                                  "{1:1}",
                                  "{\"a\":}",
                                  "01",
                                  "-",
                                  "+1",
                                  ".5",
                                  "1.",
                                  "1.e5",
                                  "1e",
                                  "1e+",
                                  "0x10",
                                  "-01",
                                  "NaN",
                                  "Infinity",
                                  "nul",
                                  "nulll",
                                  "tru",
                                  "True",
                                  "1 2",
                                  "[1]]",
                                  "'a'",
                                  "\"a",
                                  "\"\\x\"",
                                  "\"\\u12\"",
                                  "\"\\u12g4\"",
                                  "\"\\ud800\"",
                                  "\"\\ud800\\u0041\"",
                                  "\"\\udc00\"",
                                  "\"\x01\"",
                                  "\"\n\"",
                                  "\"\x80\"",
                                  "\"\xC0\x80\"",
                                  "\"\xED\xA0\x80\"",
                                  "\"\xF4\x90\x80\x80\"",
                                  "\"\xE2\x82\"",
                                  "\xEF\xBB\xBF{}",
                                  "1e400",
                                  "-1e400",
                                  "// x\n1",
                                  "[1 /* */]"};
  for (const std::string_view text : bad) EXPECT_NE(error_of(text), "accepted") << text;
  EXPECT_NE(error_of(std::string_view("1\0", 2)), "accepted");
}

TEST(Json, SaysWhichTypeWasFound) {
  try {
    parse("[1]").as_object();
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "expected an object, found an array");
  }
  EXPECT_THROW(parse("{}").at("a"), std::invalid_argument);
}

TEST(Json, NeverReadsOutsideATruncatedText) {
  const std::string text = R"({"a":[1,-2.5e3,"\u00e9\ud83d\ude00",true,null],"b":{}})";
  for (size_t size = 0; size < text.size(); ++size) {
    // A copy of exact size, so that a sanitizer sees a read beyond it.
    const std::vector<char> exact(text.begin(), text.begin() + static_cast<long>(size));
    EXPECT_NE(error_of({exact.data(), exact.size()}), "accepted");
  }
}

}  // namespace
}  // namespace torchtitan::base
