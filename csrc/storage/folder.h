// Folders as checkpoints need them; every function throws FileError.
#pragma once

#include <string>
#include <vector>

namespace torchtitan::storage {

// A real folder, not a link to one; false where nothing is.
bool is_folder(const std::string& path);

// Sorted; empty where the folder is missing.
std::vector<std::string> names_in(const std::string& folder);

// Creates the folder and those above it where missing, durable on return.
void create_folders(const std::string& path);

// Creates one new folder that only the owner may use.
void create_private_folder(const std::string& path);

// Deletes the folder with all in it; does not follow links.
void remove_folder(const std::string& path);

void move(const std::string& from, const std::string& to);

// Rename that never replaces; false when the target is there.
bool move_to_free_name(const std::string& from, const std::string& to);

// Each gets the other's name at once; false where the file system cannot.
bool exchange(const std::string& one, const std::string& other);

}  // namespace torchtitan::storage
