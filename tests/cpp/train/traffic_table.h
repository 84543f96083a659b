// What the tests of traffic have measured, written as Markdown into the file that the
// environment variable TORCHTITAN_TRAFFIC_TABLE names, if any, when all tests are over.
#pragma once

#include "train/traffic_formula.h"

namespace torchtitan::train::testing {

// Of a step of one rank that all ranks with the same stages share.
void record_traffic(const Layout& layout, int64_t rank, const TrafficMap& measured,
                    const TrafficMap& expected);

}  // namespace torchtitan::train::testing
