// A file mapped read-only.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace autodeploy {

class MappedFile {
 public:
  // Throws Error(kIo) naming the path when it cannot be opened or mapped. An empty file maps to no bytes.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  const uint8_t* data() const { return data_; }
  std::span<const uint8_t> bytes() const { return {data_, static_cast<size_t>(size_)}; }

  // Bytes [offset, offset + n) to dst without mapping them. Safe from several threads. Throws Error(kIo).
  void read(int64_t offset, int64_t n, uint8_t* dst) const;

  // Gives the pages of [begin, end) that lie wholly inside back to the system; reading them again maps them
  // anew.
  void drop(int64_t begin, int64_t end) const;
  // Says that [begin, end) will be read soon.
  void will_need(int64_t begin, int64_t end) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  int fd_ = -1;
};

}  // namespace autodeploy
