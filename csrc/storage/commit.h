// How a checkpoint comes into being, is found again, and goes.
//
//   folder/step-10.tmp-<id>/   files are written here by all ranks, each made durable
//   folder/step-10/            the same folder after manifest, fsync, rename, fsync
//   folder/step-10.replaced-by-<id>/   what was step-10 before; kept, never read
//   folder/.trash-step-10-<id>/   renamed first, then deleted
//
// So a folder named step-N is complete or not there, whatever moment a process dies at;
// nothing inside one is ever written again, and only purge() deletes one. Only one
// process calls commit(), purge() and clean_up() of a folder.
//
// A FaultHook is called between the steps with the name of the point reached; tests
// throw or exit from it. An empty one is the normal case. The points, which are fault
// points (fault.h) too: "before manifest", "manifest written", "before rename", then
// "renamed", or "exchanged" ("set aside" where folders cannot be exchanged) and
// "replaced", then "durable"; "purge renamed" and "purge deleted" for each that goes.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/manifest.h"

namespace torchtitan::storage {

using FaultHook = std::function<void(std::string_view point)>;

// Creates the folder where missing, durable, and the staging folder inside; returns its
// path.
std::string create_staging(const std::string& folder, int64_t step,
                           const std::string& id);

// Ends a save that failed, as clean_up() does for one that was killed.
void discard_staging(const std::string& folder, int64_t step, const std::string& id);

struct Committed {
  std::string path;
  std::string set_aside;  // where what had that name before now is; empty: nothing
};

// Publishes the staging folder of manifest.step and manifest.id; durable on return.
// Throws std::invalid_argument unless the staging folder holds exactly the files of the
// manifest with their sizes, FileError if the system refuses. What had that name before
// (a checkpoint that is damaged, of weights only or of a run that was abandoned, or a
// foreign folder) is kept under another one; the two are exchanged at once where the
// file system can. When the folder cannot be made durable after the rename, it is a
// staging folder again before the error is thrown.
Committed commit(const std::string& folder, const Manifest& manifest,
                 const FaultHook& hook);

// A folder named step-N.
struct FoundCheckpoint {
  int64_t step;
  std::string path;
  // Empty: manifest sound, all files have their size (of a folder for Hugging Face
  // those of weights: the others may have been edited).
  std::string problem;
  std::optional<Manifest> manifest;  // set when there is no problem
  // The system has refused to show it: the problem tells nothing of what it holds.
  bool unreadable = false;
};

struct FolderListing {
  std::vector<FoundCheckpoint> checkpoints;  // with a problem first, then newest first
  std::vector<std::string>
      ignored;  // names with "step-" that are no checkpoint folders
};

// Newest means saved last (Manifest::sequence), not the highest step: after going back
// to step 100 beside old 200 and 300, a new 110 is the newest. A missing folder is
// empty. Another process may save and purge meanwhile.
FolderListing list_checkpoints(const std::string& folder);

// The checkpoint in this folder, whatever its name, as in list_checkpoints.
FoundCheckpoint inspect_checkpoint(const std::string& path);

// Compares size and SHA-256 of the files with index part, part + num_parts, .. of the
// manifest. Throws std::invalid_argument that names file, expected and found.
void verify_files(const std::string& path, const Manifest& manifest, int64_t part,
                  int64_t num_parts);

struct Purged {
  std::vector<int64_t> steps;     // whose checkpoints were deleted
  std::vector<std::string> kept;  // would be too, but hold what the manifest lists not
};

// Deletes the checkpoints in the line of ancestors of `head` (an id) that are older
// than the keep_latest newest ones from which training can go on. Checkpoints of other
// lines, damaged ones, foreign folders and those with foreign entries stay.
Purged purge(const std::string& folder, int64_t keep_latest, const std::string& head,
             const FaultHook& hook);

struct Leftovers {
  std::vector<std::string> removed;
  std::vector<std::string> set_aside;  // their new names
};

// Ends what killed processes left: staging and trash folders are deleted, and a
// checkpoint that had just been replaced gets its name.
Leftovers clean_up(const std::string& folder);

}  // namespace torchtitan::storage
