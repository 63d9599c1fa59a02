#include "runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace autodeploy {
namespace {

int64_t page_size() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw Error(ErrorKind::kIo,
              detail::concat("[weights] ", path, " cannot be ", what, ": ", std::strerror(errno),
                             "; is the checkpoint still where it was compiled from?"));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, "opened");
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    const int error = errno;
    close(fd);
    errno = S_ISREG(info.st_mode) ? error : EINVAL;
    fail(path, "read as a file");
  }
  size_ = info.st_size;
  if (size_ > 0) {
    void* p = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      const int error = errno;
      close(fd);
      errno = error;
      fail(path, "mapped");
    }
    data_ = static_cast<const uint8_t*>(p);
  }
  fd_ = fd;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  if (fd_ >= 0) close(fd_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  return *this;
}

void MappedFile::read(int64_t offset, int64_t n, uint8_t* dst) const {
  while (n > 0) {
    const ssize_t got = pread(fd_, dst, static_cast<size_t>(n), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, "read");
    AD_CHECK(got > 0, ErrorKind::kIo, "[weights] ", path_, " became shorter than ", size_,
             " bytes while it was read; put it back, or compile the model again");
    offset += got, n -= got, dst += got;
  }
}

void MappedFile::drop(int64_t begin, int64_t end) const {
  const int64_t page = page_size();
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  // Advice: a refusal changes nothing but memory use.
  if (data_ && begin < end)
    madvise(const_cast<uint8_t*>(data_) + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

void MappedFile::will_need(int64_t begin, int64_t end) const {
  begin = begin / page_size() * page_size();
  if (data_ && begin < end)
    madvise(const_cast<uint8_t*>(data_) + begin, static_cast<size_t>(end - begin), MADV_WILLNEED);
}

}  // namespace autodeploy
