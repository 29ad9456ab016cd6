/* What PyTorch has no fast kernel for on a CPU: the scan that follows the encoder's product (which columns of each row
   are largest, or above a floor), and the dot products of chosen pairs of rows.

   A score is product + bias (its absolute value, where `absolute`); products are bfloat16 (`half`) or float32.
   Each row is one thread's and ties are broken by column, so that a result never depends on the number of threads.
   native.py compiles this file and calls it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The inner functions are copied into each call below with `half`, `absolute` and `width` constant: only so are their
   loops vector instructions. */
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    float score;
    int32_t column;
} Entry;

INLINE float score(const void *row, const float *bias, int64_t column, int half, int absolute) {
    float product;
    if (half) {
        uint32_t bits = (uint32_t)((const uint16_t *)row)[column] << 16;
        memcpy(&product, &bits, sizeof bits);
    } else {
        product = ((const float *)row)[column];
    }
    product += bias[column];
    return absolute ? fabsf(product) : product;
}

INLINE float greatest(const void *row, const float *bias, int64_t first, int64_t last, int half, int absolute) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t c = first; c < last; c++) {
        float s = score(row, bias, c, half, absolute);
        top = s > top ? s : top;
    }
    return top;
}

INLINE int before(Entry a, Entry b) { return a.score > b.score || (a.score == b.score && a.column < b.column); }

/* Moves the `count` first of `size` entries, by `before`, to the front (Hoare's quickselect). */
static void quickselect(Entry *entries, int64_t size, int64_t count) {
    int64_t low = 0, high = size - 1;
    while (low < high) {
        Entry pivot = entries[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(entries[i], pivot)) i++;
            while (before(pivot, entries[j])) j--;
            if (i <= j) {
                Entry swap = entries[i];
                entries[i++] = entries[j];
                entries[j--] = swap;
            }
        }
        if (count - 1 <= j) high = j;
        else if (count - 1 >= i) low = i;
        else return;
    }
}

#define BINS 256
INLINE int bin_of(Entry e, float low, float scale) { return (int)((e.score - low) * scale); }

/* The same with few branches: a histogram tells the bin of the count-th score, and quickselect decides within it alone.
   spare: room for `size` entries. */
static void select_first(Entry *entries, int64_t size, int64_t count, Entry *spare) {
    float low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        low = entries[i].score < low ? entries[i].score : low;
        high = entries[i].score > high ? entries[i].score : high;
    }
    float scale = (BINS - 1) / (high - low);
    if (size < BINS || count >= size || !(scale > 0 && scale < INFINITY)) return quickselect(entries, size, count);
    int32_t counts[BINS] = {0};
    for (int64_t i = 0; i < size; i++) counts[bin_of(entries[i], low, scale)]++;
    int bin = BINS - 1;
    for (int64_t above = counts[bin]; above < count; above += counts[bin]) bin--;
    int64_t first = 0, level = 0;
    for (int64_t i = 0; i < size; i++) {
        Entry e = entries[i];
        int b = bin_of(e, low, scale);
        entries[first] = e;
        first += b > bin;
        spare[level] = e;
        level += b == bin;
    }
    quickselect(spare, level, count - first);
    memcpy(entries + first, spare, (count - first) * sizeof(Entry));
}

/* The greatest score of each block of columns comes first. The k-th greatest of those is at most the row's k-th greatest
   score, so only the k blocks that reach it are looked into. NaN counts as -inf. tops, found, spare: room for an entry
   a column. */
INLINE void largest(const void *row, const float *bias, int64_t *chosen, int64_t columns, int64_t k, int64_t width,
                    Entry *tops, Entry *found, Entry *spare, int half, int absolute) {
    int64_t whole = columns / width, blocks = whole;
    for (int64_t b = 0; b < whole; b++)
        tops[b] = (Entry){greatest(row, bias, b * width, (b + 1) * width, half, absolute), (int32_t)b};
    if (whole * width < columns) {
        tops[blocks] = (Entry){greatest(row, bias, whole * width, columns, half, absolute), (int32_t)whole};
        blocks++;
    }
    select_first(tops, blocks, k, spare);
    float least = INFINITY;
    for (int64_t b = 0; b < k; b++) least = tops[b].score < least ? tops[b].score : least;
    int64_t size = 0;
    for (int64_t b = 0; b < k; b++) {
        int64_t first = tops[b].column * width, last = first + width < columns ? first + width : columns;
        for (int64_t c = first; c < last; c++) {
            float s = score(row, bias, c, half, absolute);
            s = s == s ? s : -INFINITY;
            found[size] = (Entry){s, (int32_t)c};
            size += s >= least;
        }
    }
    select_first(found, size, k, spare);
    for (int64_t i = 0; i < k; i++) chosen[i] = found[i].column;
}

/* chosen (rows, k): the columns of the k greatest scores of each row, in no order. width: of a block, 64, 32 or 1; there
   must be at least k blocks. Returns 0, or 1 where memory ran out. */
int largest_of_rows(const char *products, const float *bias, int64_t *chosen, int64_t rows, int64_t columns, int64_t k,
                    int64_t width, int threads, int half, int absolute) {
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Entry *room = malloc(3 * (columns + 1) * sizeof(Entry));
        Entry *tops = room, *found = room + columns + 1, *spare = found + columns + 1;
        if (!room) failed = 1;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (!room) continue;
            const void *row = products + n * columns * (half ? 2 : 4);
#define CASE(W, H, A) largest(row, bias, chosen + n * k, columns, k, W, tops, found, spare, H, A)
#define CASES(W) \
    if (half) absolute ? CASE(W, 1, 1) : CASE(W, 1, 0); \
    else absolute ? CASE(W, 0, 1) : CASE(W, 0, 0)
            if (width == 64) { CASES(64); }
            else if (width == 32) { CASES(32); }
            else { CASES(1); }
        }
        free(room);
    }
    return failed;
}

INLINE int64_t count_in_row(const void *row, const float *bias, float floor, int64_t first, int64_t last, int half) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t c = first; c < last; c++) count += score(row, bias, c, half, 0) > floor;
    return count;
}

INLINE void list_in_row(const void *row, const float *bias, float floor, int64_t place, int64_t *places, float *scores,
                        int64_t columns, int half) {
    for (int64_t first = 0; first < columns; first += 64) {
        int64_t last = first + 64 < columns ? first + 64 : columns;
        float top = last - first == 64 ? greatest(row, bias, first, first + 64, half, 0) : INFINITY;
        if (!(top > floor)) continue;
        for (int64_t c = first; c < last; c++) {
            float s = score(row, bias, c, half, 0);
            if (s > floor) {
                *places++ = place + c;
                *scores++ = s;
            }
        }
    }
}

/* counts (rows): how many scores of each row are above the floor. */
void count_above(const char *products, const float *bias, float floor, int64_t *counts, int64_t rows, int64_t columns,
                 int threads, int half) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const void *row = products + n * columns * (half ? 2 : 4);
        counts[n] = half ? count_in_row(row, bias, floor, 0, columns, 1) : count_in_row(row, bias, floor, 0, columns, 0);
    }
}

/* places (row * columns + column, rising) and scores of those, row n's from starts[n] on. */
void list_above(const char *products, const float *bias, float floor, const int64_t *starts, int64_t *places,
                float *scores, int64_t rows, int64_t columns, int threads, int half) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const void *row = products + n * columns * (half ? 2 : 4);
        if (half) list_in_row(row, bias, floor, n * columns, places + starts[n], scores + starts[n], columns, 1);
        else list_in_row(row, bias, floor, n * columns, places + starts[n], scores + starts[n], columns, 0);
    }
}

/* dots[offsets[n] .. offsets[n + 1]]: x_n . W_l of row n's latents l. Rows of W are far apart: the next one is asked for
   while one is multiplied. */
void dots_of_pairs(const float *x, const float *W, const int64_t *latents, const int64_t *offsets, float *dots,
                   int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const float *x_n = x + n * width;
        for (int64_t m = offsets[n]; m < offsets[n + 1]; m++) {
            const float *w = W + latents[m] * width, *next = W + latents[m + 1 < offsets[n + 1] ? m + 1 : m] * width;
            float sum = 0;
            for (int64_t d = 0; d < width; d += 64) {
                int64_t last = d + 64 < width ? d + 64 : width;
                for (int64_t line = d; line < last; line += 16) __builtin_prefetch(next + line);
                float part = 0;
                if (last - d == 64) {
#pragma omp simd reduction(+ : part)
                    for (int64_t i = 0; i < 64; i++) part += x_n[d + i] * w[d + i];
                } else {
                    for (int64_t i = d; i < last; i++) part += x_n[i] * w[i];
                }
                sum += part;
            }
            dots[m] = sum;
        }
    }
}
