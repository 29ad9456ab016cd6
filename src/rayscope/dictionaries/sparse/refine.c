/* Refined codes: the pursuit of refine.py, which has the equations, and does the same in PyTorch where this is not
   compiled. A vector is one thread's, so a result never depends on the number of threads. native.py compiles this file
   together with select.c. */

#define STAGES 2
#define LEAST 1e-6 /* of a unit row's squared length: what is left below it is rounding */
#define LANES 8

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef const float *Row;

typedef struct {                 /* one vector's pursuit, in a thread's room */
    Row x, *support, *open;      /* the vector; n rows of W, at most k; `opened` candidates that may join them */
    int64_t D, k, n, opened;
    Entry *entries;
    float *slopes, *residual;    /* w . r of the open candidates; r (D) */
    double *z, *fit, *half;      /* of the support: codes, w . x, L half = fit */
    double *gram, *factor;       /* (k, k): w . w; L and, above its diagonal, L', of gram = L L' */
    double *inverse;             /* 1 / the diagonal of L, or 0 */
} Pursuit;

/* products[i * n + j] = a_i . b_j of m rows a and n rows b. m * n sums are in flight: both are constants, at most 8. */
INLINE void multiply(const Row *a, int m, const Row *b, int n, float *products, int64_t D) {
    Lanes sums[8] = {{0}};
    int64_t whole = D - D % LANES;
    for (int64_t d = 0; d < whole; d += LANES) {
        Lanes parts[8];
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) parts[j] = *(const Lanes *)(b[j] + d);
#pragma GCC unroll 8
        for (int s = 0; s < m * n; s++) sums[s] += *(const Lanes *)(a[s / n] + d) * parts[s % n];
    }
    for (int s = 0; s < m * n; s++) {
        Lanes t = sums[s];
        float sum = ((t[0] + t[4]) + (t[1] + t[5])) + ((t[2] + t[6]) + (t[3] + t[7]));
        for (int64_t d = whole; d < D; d++) sum += a[s / n][d] * b[s % n][d];
        products[s] = sum;
    }
}

/* products[i] = x . rows[i] */
static void multiply_rows(Row x, const Row *rows, int64_t size, float *products, int64_t D) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) multiply(rows + i, 8, &x, 1, products + i, D);
    for (; i + 2 <= size; i += 2) multiply(rows + i, 2, &x, 1, products + i, D);
    if (i < size) multiply(rows + i, 1, &x, 1, products + i, D);
}

/* r = x - the sum of z_i rows[i]. Returns |r|^2. */
static double leave(Pursuit *p, const Row *rows, const double *z, int64_t size) {
    float *r = p->residual, total = 0;
    memcpy(r, p->x, p->D * sizeof(float));
    for (int64_t i = 0; i < size; i++) {
        Row w = rows[i];
        float code = (float)z[i];
#pragma omp simd
        for (int64_t d = 0; d < p->D; d++) r[d] -= code * w[d];
    }
#pragma omp simd reduction(+ : total)
    for (int64_t d = 0; d < p->D; d++) total += r[d] * r[d];
    return total;
}

/* gram and fit of the support's rows first to n, four at a time. */
static void multiply_support(Pursuit *p, int64_t first) {
    for (int64_t i = first; i < p->n; i += 4) {
        int64_t rows = p->n - i < 4 ? p->n - i : 4, columns = i + rows;
        Row new[4];
        for (int64_t j = 0; j < 4; j++) new[j] = p->support[j < rows ? i + j : i];
        for (int64_t j = 0; j <= columns; j += 2) { /* x comes after the support */
            Row old[2] = {j < columns ? p->support[j] : p->x, j + 1 < columns ? p->support[j + 1] : p->x};
            float products[8];
            multiply(new, 4, old, 2, products, p->D);
            for (int64_t s = 0; s < 2 * rows; s++) {
                int64_t row = i + s / 2, column = j + s % 2;
                if (column < columns) p->gram[row * p->k + column] = products[s];
                else p->fit[row] = products[s];
            }
        }
    }
}

/* Rows first to n of L and of half. A row of W that those before it span, to rounding, gets no code. */
static void factorise(Pursuit *p, int64_t first) {
    for (int64_t i = first; i < p->n; i++) {
        memcpy(p->factor + i * p->k, p->gram + i * p->k, (i + 1) * sizeof(double));
        p->half[i] = p->fit[i];
    }
    for (int64_t j = 0; j < p->n; j++) {
        double *row = p->factor + j * p->k;
        if (j >= first) {
            p->inverse[j] = row[j] > LEAST ? 1 / sqrt(row[j]) : 0;
            p->half[j] *= p->inverse[j];
        }
        for (int64_t i = j < first ? first : j + 1; i < p->n; i++) {
            double *below = p->factor + i * p->k, value = below[j] *= p->inverse[j];
            row[i] = value;
#pragma omp simd
            for (int64_t m = j + 1; m <= i; m++) below[m] -= value * row[m];
            p->half[i] -= value * p->half[j];
        }
    }
}

/* L' z = half */
static void solve(Pursuit *p) {
    memcpy(p->z, p->half, p->n * sizeof(double));
    for (int64_t i = p->n - 1; i >= 0; i--) {
        const double *row = p->factor + i * p->k, code = p->z[i] *= p->inverse[i];
#pragma omp simd
        for (int64_t j = 0; j < i; j++) p->z[j] -= code * row[j];
    }
}

/* Makes z least squares on the support, of which rows first to n are new. Whatever gets no code (rays: no positive one)
   leaves it, until all have one. */
static void least_squares(Pursuit *p, int64_t first, int has_sign) {
    multiply_support(p, first);
    for (;;) {
        int64_t kept[p->n + 1], n = 0;
        factorise(p, first);
        solve(p);
        for (int64_t i = 0; i < p->n; i++)
            if (has_sign ? p->z[i] != 0 : p->z[i] > 0) kept[n++] = i;
        if (n == p->n) return;
        for (first = 0; first < n && kept[first] == first;) first++;
        for (int64_t i = first; i < n; i++) {
            p->support[i] = p->support[kept[i]];
            p->fit[i] = p->fit[kept[i]];
            for (int64_t j = 0; j <= i; j++) p->gram[i * p->k + j] = p->gram[kept[i] * p->k + kept[j]];
        }
        p->n = n;
    }
}

INLINE int64_t place_of_greatest(const float *scores, int64_t size) {
    float top = -INFINITY;
    int32_t place = INT32_MAX;
#pragma omp simd reduction(max : top)
    for (int32_t i = 0; i < size; i++) top = scores[i] > top ? scores[i] : top;
#pragma omp simd reduction(min : place)
    for (int32_t i = 0; i < size; i++) place = scores[i] == top && i < place ? i : place;
    return place < size ? place : 0;
}

/* Open candidates join the support, those of greatest slope first, until it has `size` rows or no slope is above 0. */
static void take(Pursuit *p, int64_t size, int has_sign) {
    int64_t first = p->n;
    leave(p, p->support, p->z, p->n);
    multiply_rows(p->residual, p->open, p->opened, p->slopes, p->D);
    if (has_sign)
        for (int64_t i = 0; i < p->opened; i++) p->slopes[i] = fabsf(p->slopes[i]);
    while (p->n < size && p->opened) {
        int64_t place = place_of_greatest(p->slopes, p->opened);
        if (!(p->slopes[place] > 0)) break;
        p->support[p->n++] = p->open[place];
        p->open[place] = p->open[--p->opened];
        p->slopes[place] = p->slopes[p->opened];
    }
    least_squares(p, first, has_sign);
}

/* Leaves a vector's refined codes in support and z. It has `size` candidates with pre-activations pre; the greatest k
   are its own codes, of which the first half is kept; the greatest `times` * k may join them. */
static void pursue(Pursuit *p, const float *W, const int64_t *candidates, const float *pre, int64_t size, int64_t k,
                   int64_t times, int has_sign) {
    int64_t count = times * k < size ? times * k : size;
    Row own[k + 1];
    double codes[k + 1];
    for (int64_t c = 0; c < size; c++) p->entries[c] = (Entry){has_sign ? fabsf(pre[c]) : pre[c], (int32_t)c};
    if (count < size) quickselect(p->entries, size, count);
    quickselect(p->entries, count, k);
    quickselect(p->entries, k, k / 2);
    for (int64_t c = 0; c < count; c++) {
        int32_t place = p->entries[c].column;
        p->open[c] = W + candidates[place] * p->D;
        if (c < k) own[c] = p->open[c], codes[c] = has_sign || pre[place] > 0 ? pre[place] : 0;
    }
    p->n = k / 2;
    p->opened = count - p->n;
    memcpy(p->support, own, p->n * sizeof(Row));
    memmove(p->open, p->open + p->n, p->opened * sizeof(Row));
    least_squares(p, 0, has_sign);
    for (int64_t stage = 1; stage <= STAGES; stage++) {
        int64_t aim = k / 2 + (k - k / 2) * stage / STAGES;
        if (aim > p->n) take(p, aim, has_sign);
    }
    double refined = leave(p, p->support, p->z, p->n);
    if (!(refined <= leave(p, own, codes, k))) {
        memcpy(p->support, own, k * sizeof(Row));
        memcpy(p->z, codes, k * sizeof(double));
        p->n = k;
    }
}

/* indices, values (vectors, k): the refined codes of each row of x (vectors, D), 0 where there are fewer than k.
   candidates, pre (vectors, size): rows of W and their pre-activations. own[n] <= k: a vector's own number of codes.
   Returns 0, or 1 where memory ran out. */
int refine_codes(const float *x, const float *W, const int64_t *candidates, const float *pre, const int64_t *own,
                 int64_t *indices, float *values, int64_t vectors, int64_t D, int64_t size, int64_t k, int64_t times,
                 int threads, int has_sign) {
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Entry *entries = malloc((size + 1) * sizeof(Entry));
        Row *rows = malloc((size + k + 1) * sizeof(Row));
        float *floats = malloc((size + D) * sizeof(float));
        double *doubles = malloc((2 * k + 4) * (k + 1) * sizeof(double));
        int room = entries && rows && floats && doubles;
        if (!room) failed = 1;
        Pursuit p = {.D = D, .k = k, .entries = entries, .support = rows, .open = rows + k, .slopes = floats,
                     .residual = floats + size, .z = doubles, .fit = doubles + k, .half = doubles + 2 * k,
                     .inverse = doubles + 3 * k, .gram = doubles + 4 * k, .factor = doubles + 4 * k + k * k};
#pragma omp for schedule(static)
        for (int64_t n = 0; n < vectors; n++) {
            if (!room) continue;
            p.x = x + n * D;
            pursue(&p, W, candidates + n * size, pre + n * size, size, own[n], times, has_sign);
            for (int64_t i = 0; i < k; i++) {
                indices[n * k + i] = i < p.n ? (p.support[i] - W) / D : 0;
                values[n * k + i] = i < p.n ? (float)p.z[i] : 0;
            }
        }
        free(entries), free(rows), free(floats), free(doubles);
    }
    return failed;
}
