#include "plan/schedules/csv.h"

#include <algorithm>
#include <charconv>

#include "base/errors.h"

namespace torchtitan::plan::schedules {
namespace {

using base::message;

constexpr std::string_view kOverlap = "OVERLAP_F_B";

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// Takes a number from the front.
bool take_number(std::string_view& text, int64_t& number) {
  if (text.empty() || text[0] < '0' || text[0] > '9') return false;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  text.remove_prefix(end - text.data());
  return error == std::errc();
}

class Reader {
 public:
  Schedule read(std::string_view text) {
    std::vector<std::string_view> rows = split(text, '\n');
    while (!rows.empty() && trim(rows.back()).empty()) rows.pop_back();
    base::check_value(!rows.empty(), "schedule CSV: there is no row");
    for (row_ = 0; row_ < rows.size(); ++row_) read_row(rows[row_]);
    count();
    if (const auto problem = find_problem(schedule_, ProgramKind::kTraining)) {
      fail_at(*problem);
    }
    return std::move(schedule_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(
        message("schedule CSV, row ", row_ + 1, ", column ", column_ + 1, ": ", what));
  }

  [[noreturn]] void fail_at(const ScheduleProblem& problem) {
    row_ = problem.rank;
    const auto& actions = schedule_.ranks[row_];
    const auto index = static_cast<size_t>(problem.index);
    if (index == actions.size()) {
      column_ = num_columns_[row_];  // after the last one
      fail(problem.what);
    }
    column_ = columns_[row_][index];
    fail(to_string(actions[index]) + ": " + problem.what);
  }

  void read_row(std::string_view row) {
    schedule_.ranks.emplace_back();
    columns_.emplace_back();
    const std::vector<std::string_view> cells = split(row, ',');
    for (column_ = 0; column_ < cells.size(); ++column_) {
      const std::string_view cell = trim(cells[column_]);
      if (!cell.empty()) read_cell(cell);
    }
    num_columns_.push_back(cells.size());
    if (schedule_.ranks.back().empty()) {
      column_ = 0;
      fail("the rank of this row has nothing to do");
    }
  }

  void read_cell(std::string_view cell) {
    if (!cell.starts_with('(')) return add(read_action(cell, cell));
    const size_t end = cell.find(')');
    const auto parts = split(cell.substr(1, end == cell.npos ? end : end - 1), ';');
    if (end == cell.npos || trim(cell.substr(end + 1)) != kOverlap ||
        parts.size() != 2) {
      expected("(2F1;5B0)OVERLAP_F_B", cell);
    }
    StageAction forward = read_action(trim(parts[0]), cell);
    forward.overlaps_next = true;
    add(forward);
    add(read_action(trim(parts[1]), cell));
  }

  [[noreturn]] void expected(const std::string& what, std::string_view cell) const {
    fail(message("expected ", what, ", found '", cell, "'"));
  }

  StageAction read_action(std::string_view text, std::string_view cell) const {
    StageAction action{};
    const std::string form = "stage, one of F, B, I and W, and microbatch, such as 2F0";
    if (!take_number(text, action.stage)) expected(form, cell);
    const size_t letter = std::string_view("FBIW").find(text.substr(0, 1));
    // torch's other words (SEND_F, UNSHARD, ...): those actions are added later.
    if (text.empty() || letter == std::string_view::npos) expected(form, cell);
    action.work = static_cast<StageWork>(letter);
    text.remove_prefix(1);
    if (!take_number(text, action.microbatch) || !text.empty()) expected(form, cell);
    if (std::max(action.stage, action.microbatch) > kMost) {
      expected(message("numbers up to ", kMost), cell);
    }
    return action;
  }

  void add(const StageAction& action) {
    schedule_.ranks.back().push_back(action);
    columns_.back().push_back(column_);
  }

  // Stages, their ranks and microbatches, from what the cells name.
  void count() {
    for (const auto& actions : schedule_.ranks) {
      for (const StageAction& action : actions) {
        schedule_.num_microbatches =
            std::max(schedule_.num_microbatches, action.microbatch + 1);
        const auto stage = static_cast<size_t>(action.stage);
        if (stage >= schedule_.rank_of_stage.size()) {
          schedule_.rank_of_stage.resize(stage + 1, -1);
        }
      }
    }
    for (size_t rank = schedule_.ranks.size(); rank-- > 0;) {
      for (const StageAction& action : schedule_.ranks[rank]) {
        schedule_.rank_of_stage[action.stage] = static_cast<int64_t>(rank);
      }
    }
    const auto& stages = schedule_.rank_of_stage;
    const auto gap = std::find(stages.begin(), stages.end(), -1);
    base::check_value(gap == stages.end(), "schedule CSV: stage ", gap - stages.begin(),
                      " of ", stages.size(), " is in no row");
  }

  static constexpr int64_t kMost = 99'999;

  Schedule schedule_{{}, 0, {}};
  std::vector<std::vector<size_t>> columns_;  // [rank][action]
  std::vector<size_t> num_columns_;           // [rank]
  size_t row_ = 0;
  size_t column_ = 0;
};

}  // namespace

Schedule parse_csv(std::string_view text) { return Reader().read(text); }

std::string to_csv(const Schedule& schedule) {
  std::string text;
  for (const auto& actions : schedule.ranks) {
    for (size_t i = 0; i < actions.size(); ++i) {
      if (i > 0) text += ",";
      if (actions[i].overlaps_next) {
        text += message("(", to_string(actions[i]), ";", to_string(actions[i + 1]), ")",
                        kOverlap);
        ++i;
      } else {
        text += to_string(actions[i]);
      }
    }
    text += "\n";
  }
  return text;
}

}  // namespace torchtitan::plan::schedules
