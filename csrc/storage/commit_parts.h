// What commit.cpp, listing.cpp and purge.cpp share.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "storage/commit.h"

namespace torchtitan::storage {

// The manifest of a checkpoint's folder, compared with its SHA-256. Throws
// std::invalid_argument for a folder without one or a damaged one, else FileError.
Manifest read_manifest_of(const std::string& path);

// The first missing or wrongly sized file of a checkpoint's folder; empty when none.
std::string compare_sizes(const std::string& path, std::span<const FileRecord> files);

// Calls the hook, and is a fault point (fault.h) of that name.
void reach(const FaultHook& hook, std::string_view point);

// Where a process died between the exchange and the rename, the replaced checkpoint has
// the name of the staging folder: the name that it was to get, else nullopt.
std::optional<std::string> name_when_replaced(const std::string& folder,
                                              const std::string& name);

// On a file system that cannot exchange folders a process may die when step-N was set
// aside and what replaces it has not yet its name. "step-N" then, else nullopt.
std::optional<std::string> name_before_replacing(const std::string& folder,
                                                 const std::string& aside);

}  // namespace torchtitan::storage
