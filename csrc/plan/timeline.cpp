#include "plan/timeline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include "base/errors.h"

namespace torchtitan::plan {
namespace {

// Pixels.
constexpr double kLeft = 170.0;
constexpr double kWidth = 1180.0;  // of the time axis
constexpr double kTop = 78.0;
constexpr double kBarHeight = 22.0;
constexpr double kThinHeight = 4.0;
constexpr double kLaneHeight = 34.0;

struct Style {
  const char* colour;
  const char* name;
  ActionKind kind;
};

// In the order of the legend.
constexpr std::array kBars{
    Style{"#4e79a7", "forward", ActionKind::kForward},
    Style{"#af7aa1", "recompute", ActionKind::kRecompute},
    Style{"#59a14f", "backward", ActionKind::kBackward},
    Style{"#76b7b2", "backward of inputs", ActionKind::kBackwardInput},
    Style{"#f28e2b", "backward of weights", ActionKind::kBackwardWeight},
    Style{"#9c755f", "clip", ActionKind::kClipGradient},
    Style{"#e15759", "optimizer", ActionKind::kOptimizerStep},
};
constexpr const char* kCommunicationColour = "#7f7f7f";

const Style* style_of(ActionKind kind) {
  const auto found = std::find_if(kBars.begin(), kBars.end(), [&](const Style& style) {
    return style.kind == kind;
  });
  return found == kBars.end() ? nullptr : &*found;
}

std::string number(double value, const char* format = "%.2f") {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string escape(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

void check_spans(std::span<const Program> programs,
                 std::span<const std::vector<Span>> spans) {
  using base::check_value;
  check_value(programs.size() == spans.size(), "draw_timeline: got programs of ",
              programs.size(), " ranks and spans of ", spans.size());
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    check_value(programs[rank].size() == spans[rank].size(), "draw_timeline: rank ",
                rank, " has ", programs[rank].size(), " actions and ",
                spans[rank].size(), " spans");
    for (size_t i = 0; i < spans[rank].size(); ++i) {
      const auto& [begin, end] = spans[rank][i];
      check_value(begin >= 0.0 && begin <= end && std::isfinite(end),
                  "draw_timeline: rank ", rank, ", action ", i, " has a span from ",
                  begin, " to ", end);
    }
  }
}

double end_of(std::span<const std::vector<Span>> spans) {
  double end = 0.0;
  for (const auto& of_rank : spans) {
    for (const Span& span : of_rank) end = std::max(end, span.end);
  }
  return end;
}

int64_t most_live(const Program& program) {
  int64_t live = 0, most = 0;
  for (const Action& action : program) {
    if (action.kind == ActionKind::kForward) most = std::max(most, ++live);
    live -= action.kind == ActionKind::kBackward ||
            action.kind == ActionKind::kBackwardWeight;
  }
  return most;
}

class Picture {
 public:
  Picture(std::span<const Program> programs, std::span<const std::vector<Span>> spans)
      : programs_(programs), spans_(spans), seconds_(end_of(spans)) {}

  std::string draw(const std::string& title) {
    const double height =
        kTop + kLaneHeight * static_cast<double>(programs_.size()) + 44.0;
    text_ = base::message("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"",
                          number(kLeft + kWidth + 20.0, "%.0f"), "\" height=\"",
                          number(height, "%.0f"),
                          "\" font-family=\"sans-serif\" font-size=\"12\">\n"
                          "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n");
    draw_text(kLeft, 24.0, "start", escape(title), " font-size=\"16\"");
    draw_text(kLeft, 44.0, "start", summary());
    draw_legend();
    for (size_t rank = 0; rank < programs_.size(); ++rank) draw_rank(rank);
    draw_axis();
    return text_ + "</svg>\n";
  }

 private:
  double x_of(double seconds) const {
    return seconds_ > 0.0 ? kLeft + kWidth * seconds / seconds_ : kLeft;
  }

  void draw_text(double x, double y, const char* anchor, const std::string& words,
                 const std::string& more = "") {
    text_ +=
        base::message("<text x=\"", number(x), "\" y=\"", number(y),
                      "\" text-anchor=\"", anchor, "\"", more, ">", words, "</text>\n");
  }

  // `hint` is shown by browsers.
  void draw_box(double x, double y, double width, double height, const char* colour,
                const std::string& more = "", const std::string& hint = "") {
    text_ += base::message("<rect x=\"", number(x), "\" y=\"", number(y), "\" width=\"",
                           number(width), "\" height=\"", number(height), "\" fill=\"",
                           colour, "\"", more);
    text_ += hint.empty() ? "/>\n" : "><title>" + hint + "</title></rect>\n";
  }

  std::string summary() const {
    int64_t most = 0;
    for (const Program& program : programs_) most = std::max(most, most_live(program));
    const double idle = 100.0 * idle_share(programs_, spans_);
    return base::message("bubble ", number(idle, "%.1f"), " %, at most ", most,
                         " live activations on a rank, ", number(seconds_, "%.4g"),
                         " s");
  }

  void draw_legend() {
    std::set<ActionKind> used;
    bool communicates = false;
    for (const Program& program : programs_) {
      for (const Action& action : program) {
        used.insert(action.kind);
        communicates = communicates || is_start(action);
      }
    }
    double x = kLeft;
    const auto entry = [&](const char* colour, double height, const std::string& name) {
      draw_box(x, 66.0 - height, 14.0, height, colour);
      draw_text(x + 18.0, 65.0, "start", name);
      x += 34.0 + 7.0 * static_cast<double>(name.size());
    };
    for (const Style& style : kBars) {
      if (used.contains(style.kind)) entry(style.colour, 12.0, style.name);
    }
    if (communicates) entry(kCommunicationColour, kThinHeight, "communication");
  }

  void draw_rank(size_t rank) {
    const double y = kTop + kLaneHeight * static_cast<double>(rank);
    std::map<int64_t, int64_t> place_of_stage;
    for (const Action& action : programs_[rank]) place_of_stage[action.stage] = 0;
    place_of_stage.erase(-1);
    std::string label = base::message("rank ", rank);
    int64_t place = 0;
    for (auto& [stage, own] : place_of_stage) {
      label += base::message(place == 0 ? ": st" : ", st", stage);
      own = place++;
    }
    draw_text(kLeft - 8.0, y + 16.0, "end", label);
    draw_box(kLeft, y, kWidth, kBarHeight, "#eeeeee");
    bool framed = false;
    for (size_t i = 0; i < programs_[rank].size(); ++i) {
      const Action& action = programs_[rank][i];
      const Span& span = spans_[rank][i];
      framed = action.overlaps_next ||
               (framed && i > 0 && programs_[rank][i - 1].overlaps_next);
      if (const Style* style = style_of(action.kind)) {
        const auto found = place_of_stage.find(action.stage);
        const int64_t tint = found == place_of_stage.end() ? 0 : found->second;
        draw_bar(action, span, y, *style, tint, framed);
      } else if (is_start(action) && span.end > span.begin) {
        draw_box(x_of(span.begin), y + kBarHeight + 1.0,
                 x_of(span.end) - x_of(span.begin), kThinHeight, kCommunicationColour,
                 " fill-opacity=\"0.6\"", hint(action, span));
      }
    }
  }

  static std::string hint(const Action& action, const Span& span) {
    return base::message(escape(to_string(action)), ": ", number(span.begin, "%.6g"),
                         " to ", number(span.end, "%.6g"), " s");
  }

  void draw_bar(const Action& action, const Span& span, double y, const Style& style,
                int64_t tint, bool framed) {
    const double x = x_of(span.begin), width = x_of(span.end) - x;
    const double opacity = std::max(0.4, 1.0 - 0.3 * static_cast<double>(tint));
    const char* stroke = framed ? " stroke=\"black\" stroke-width=\"1\""
                                : " stroke=\"white\" stroke-width=\"0.5\"";
    draw_box(x, y, width, kBarHeight, style.colour,
             base::message(" fill-opacity=\"", number(opacity), "\"", stroke),
             hint(action, span));
    if (action.microbatch < 0) return;
    const std::string name = std::to_string(action.microbatch);
    if (width < 8.0 * static_cast<double>(name.size())) return;
    draw_text(x + width / 2.0, y + 15.5, "middle", name,
              tint == 0 ? " fill=\"white\"" : "");
  }

  // At most ten marks at round numbers.
  void draw_axis() {
    if (seconds_ <= 0.0) return;
    double mark = std::pow(10.0, std::floor(std::log10(seconds_ / 10.0)));
    for (const double factor : {2.0, 2.5, 2.0}) {
      if (seconds_ / mark > 10.0) mark *= factor;
    }
    const double y = kTop + kLaneHeight * static_cast<double>(programs_.size());
    for (int i = 0; mark * i <= seconds_ * (1.0 + 1e-9); ++i) {
      const double x = x_of(mark * i);
      text_ += base::message("<path d=\"M", number(x), " ", number(kTop), "V",
                             number(y + 4.0),
                             "\" stroke=\"#bbbbbb\" stroke-width=\"0.5\"/>\n");
      draw_text(x, y + 18.0, "middle", number(mark * i, "%.6g") + " s");
    }
  }

  const std::span<const Program> programs_;
  const std::span<const std::vector<Span>> spans_;
  const double seconds_;
  std::string text_;
};

}  // namespace

std::string draw_timeline(std::span<const Program> programs,
                          std::span<const std::vector<Span>> spans,
                          const std::string& title) {
  check_spans(programs, spans);
  return Picture(programs, spans).draw(title);
}

double idle_share(std::span<const Program> programs,
                  std::span<const std::vector<Span>> spans) {
  check_spans(programs, spans);
  double busy = 0.0;
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    for (size_t i = 0; i < programs[rank].size(); ++i) {
      const Action& action = programs[rank][i];
      const bool works =
          is_compute(action) || action.kind == ActionKind::kOptimizerStep;
      if (works) busy += spans[rank][i].end - spans[rank][i].begin;
    }
  }
  const double all = end_of(spans) * static_cast<double>(programs.size());
  return all > 0.0 ? (all - busy) / all : 0.0;
}

Program with_stages(Program program, const StepShape& shape) {
  for (Action& action : program) {
    if (!is_compute(action) || action.segment < 0) continue;
    for (const StageShape& stage : shape.stages) {
      const bool holds =
          action.segment >= stage.first_segment && action.segment < stage.end();
      if (holds) action.stage = stage.index;
    }
  }
  return program;
}

}  // namespace torchtitan::plan
