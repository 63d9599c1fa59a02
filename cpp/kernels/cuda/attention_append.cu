// Puts the step's keys, turned where they are to be, and values into the pages of their sequences.
#include "kernels/cuda/paged_tile.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;

struct AppendArgs {
  PagedAttention a;
  int key_pieces = 0, value_pieces = 0;  // of 8 elements, of a row
  int64_t first_token = 0, items = 0;    // pieces of all tokens
};

template <class T>
__global__ void __launch_bounds__(kThreads) append_kernel(const AppendArgs p) {
  wait_for_previous();
  let_next_start();
  const PagedAttention& a = p.a;
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (item >= p.items) return;
  const int head_pieces = p.key_pieces + p.value_pieces, token_pieces = a.kv_heads * head_pieces;
  const int64_t of_token = item / token_pieces, token = p.first_token + of_token;
  int piece = static_cast<int>(item - of_token * token_pieces);
  const int head = piece / head_pieces;
  piece -= head * head_pieces;
  const bool is_key = piece < p.key_pieces;
  if (!is_key) piece -= p.key_pieces;
  const int seq = a.token_seq[token];
  const int place = a.kv_len[seq] - (a.query_start[seq + 1] - static_cast<int>(token));
  const int64_t page = a.pages[a.page_start[seq] + (place >> a.page_shift)];
  const int64_t row = (int64_t{head} << a.page_shift) + (place & ((1 << a.page_shift) - 1));
  uint8_t* to = is_key ? a.k_pages + page * a.k_page_bytes + (row * p.key_pieces + piece) * 16
                       : a.v_pages + page * a.v_page_bytes + (row * p.value_pieces + piece) * 16;
  *reinterpret_cast<Piece<T>*>(to) =
      is_key ? turned_piece(a.turn, a.k.row<const T>(token, head), a.k.wide, token, piece * 8)
             : load_piece(a.v.row<const T>(token, head) + piece * 8, a.v.wide);
}

}  // namespace

void launch_append(DType dtype, int key_len, int value_len, const PagedAttention& a, int64_t first_token,
                   int64_t num_tokens, Stream stream) {
  AppendArgs p;
  p.a = a;
  p.key_pieces = key_len / 8, p.value_pieces = value_len / 8;
  p.first_token = first_token;
  p.items = (num_tokens - first_token) * a.kv_heads * (p.key_pieces + p.value_pieces);
  if (p.items <= 0) return;
  const auto blocks = static_cast<unsigned>((p.items + kThreads - 1) / kThreads);
  const LaunchConfig config{dim3(blocks), dim3(kThreads), stream, 0, true};
  dispatch_half(dtype, [&](auto t) { launch(config, append_kernel<typename decltype(t)::type>, p); });
}

}  // namespace autodeploy::cuda
