"""A scanner of JSON text: strict, without recursion, touching no Python object.

CPython ends the buffer of a `str` with a NUL, which is malformed wherever JSON could
have it, so no loop needs to compare its place with the length: it stops at the NUL
at the latest. A build with STEADWIRE_CHECKED compares at each read.

Every function but `space`, `blank` and `run` returns the place after what it
scanned, or the complement (``~place``, always negative) of where the text is
malformed.
"""

cdef extern from *:
    """
    #include <string.h>
    #ifdef STEADWIRE_CHECKED
    #define CHECKED 1
    #else
    #define CHECKED 0
    #endif
    /* Skip what a string may hold as it is, for as long as whole blocks are left. The
       checked build takes the portable way, so that the tests see both. */
    #if defined(__SSE2__) && !defined(STEADWIRE_CHECKED)
    #include <emmintrin.h>
    static inline Py_ssize_t
    skip_blocks(const unsigned char *text, Py_ssize_t size, Py_ssize_t at)
    {
        for (; at + 16 <= size; at += 16) {
            __m128i block = _mm_loadu_si128((const __m128i *)(text + at));
            __m128i stops = _mm_or_si128(
                _mm_or_si128(_mm_cmpeq_epi8(block, _mm_set1_epi8('"')),
                             _mm_cmpeq_epi8(block, _mm_set1_epi8(0x5C))),
                _mm_cmpeq_epi8(_mm_min_epu8(block, _mm_set1_epi8(0x1F)), block));
            int mask = _mm_movemask_epi8(stops);
            if (mask)
                return at + __builtin_ctz(mask);
        }
        return at;
    }
    #else
    static inline Py_ssize_t
    skip_blocks(const unsigned char *text, Py_ssize_t size, Py_ssize_t at)
    {
        /* Mycroft's test for a zero byte, on three differences at once. */
        const unsigned long long ones = 0x0101010101010101ULL;
        for (; at + 8 <= size; at += 8) {
            unsigned long long block, quote, slash, stops;
            memcpy(&block, text + at, 8);
            quote = block ^ (ones * 0x22);
            slash = block ^ (ones * 0x5C);
            stops = ((block - ones * 0x20) & ~block) | ((quote - ones) & ~quote)
                | ((slash - ones) & ~slash);
            if (stops & (ones * 0x80))
                return at;
        }
        return at;
    }
    #endif
    """
    const bint CHECKED
    Py_ssize_t skip_blocks(
        const unsigned char* text, Py_ssize_t size, Py_ssize_t at
    ) noexcept nogil

cdef extern from "Python.h":
    ctypedef unsigned char UCS1 "Py_UCS1"
    ctypedef unsigned short UCS2 "Py_UCS2"
    ctypedef unsigned int UCS4 "Py_UCS4"  # a number here; Cython's own is text
    void Py_FatalError(const char* message) noexcept nogil

ctypedef fused Char:
    UCS1
    UCS2
    UCS4

cdef enum:
    MAX_DEPTH = 100  # json_py.DEPTH
    MAX_NUMBER = 4300  # json_py.NUMBER


cdef inline unsigned int read(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Return one character; the NUL after the last one may be read too."""
    if CHECKED and not 0 <= at <= size:
        Py_FatalError("_speedups.json_c read outside its text")
    return <unsigned int>text[at]


cdef inline Py_ssize_t space(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Return the place of the first character that is not whitespace."""
    cdef unsigned int c = read(text, size, at)
    while c <= c" " and (c == c" " or c == c"\n" or c == c"\r" or c == c"\t"):
        at += 1
        c = read(text, size, at)
    return at


cdef inline Py_ssize_t blank(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Return the place of the first character that is not space within a line."""
    cdef unsigned int c = read(text, size, at)
    while c <= c" " and (c == c" " or c == c"\r" or c == c"\t"):
        at += 1
        c = read(text, size, at)
    return at


cdef inline Py_ssize_t run(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Return the place of the first character that a string cannot hold as it is.

    These are the quotation mark, the backslash, control characters and surrogates.
    """
    cdef unsigned int c
    if Char is UCS1:
        at = skip_blocks(text, size, at)
    c = read(text, size, at)
    while c >= 0x20 and c != c'"' and c != c"\\" and c >> 11 != 0x1B:
        at += 1
        c = read(text, size, at)
    return at


cdef inline bint is_hex(unsigned int c) noexcept nogil:
    return c"0" <= c <= c"9" or c"a" <= c <= c"f" or c"A" <= c <= c"F"


cdef inline Py_ssize_t string(
    const Char* text, Py_ssize_t size, Py_ssize_t at, bint* escaped
) noexcept nogil:
    """Scan a string from the character after its opening quotation mark."""
    cdef unsigned int c
    cdef int digit
    while True:
        at = run(text, size, at)
        c = read(text, size, at)
        if c == c'"':
            return at + 1
        if c != c"\\":
            return ~at
        escaped[0] = True
        c = read(text, size, at + 1)
        if c == c"u":
            for digit in range(2, 6):
                if not is_hex(read(text, size, at + digit)):
                    return ~at
            at += 6
        elif (
            c == c'"' or c == c"\\" or c == c"/" or c == c"b"
            or c == c"f" or c == c"n" or c == c"r" or c == c"t"
        ):
            at += 2
        else:
            return ~at


cdef inline Py_ssize_t digits(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Scan one digit or more."""
    if not c"0" <= read(text, size, at) <= c"9":
        return ~at
    while c"0" <= read(text, size, at) <= c"9":
        at += 1
    return at


cdef inline Py_ssize_t number(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Scan a number."""
    cdef Py_ssize_t start = at
    cdef unsigned int c
    if read(text, size, at) == c"-":
        at += 1
    if read(text, size, at) == c"0":
        at += 1
    else:
        at = digits(text, size, at)
        if at < 0:
            return at
    if read(text, size, at) == c".":
        at = digits(text, size, at + 1)
        if at < 0:
            return at
    c = read(text, size, at)
    if c == c"e" or c == c"E":
        c = read(text, size, at + 1)
        at = digits(text, size, at + 2 if c == c"+" or c == c"-" else at + 1)
    return ~at if at - start > MAX_NUMBER else at


cdef inline Py_ssize_t literal(
    const Char* text, Py_ssize_t size, Py_ssize_t at, const char* rest
) noexcept nogil:
    """Scan what is left of a word whose first letter is at *at*."""
    cdef Py_ssize_t letter = 0
    while rest[letter]:
        if read(text, size, at + 1 + letter) != <unsigned char>rest[letter]:
            return ~at
        letter += 1
    return at + 1 + letter


cdef inline Py_ssize_t scalar(
    const Char* text, Py_ssize_t size, Py_ssize_t at, bint* escaped
) noexcept nogil:
    """Scan a value that is not a container."""
    cdef unsigned int c = read(text, size, at)
    if c == c'"':
        return string(text, size, at + 1, escaped)
    if c == c"-" or c"0" <= c <= c"9":
        return number(text, size, at)
    if c == c"t":
        return literal(text, size, at, b"rue")
    if c == c"f":
        return literal(text, size, at, b"alse")
    if c == c"n":
        return literal(text, size, at, b"ull")
    return ~at


cdef inline Py_ssize_t colon(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Scan from after a key to its value."""
    if read(text, size, at) != c":":
        at = space(text, size, at)
    if read(text, size, at) != c":":
        return ~at
    return space(text, size, at + 1)


cdef inline Py_ssize_t key(
    const Char* text, Py_ssize_t size, Py_ssize_t at
) noexcept nogil:
    """Scan a key, of which nothing is wanted, and on to its value."""
    cdef bint escaped
    if read(text, size, at) != c'"':
        return ~at
    at = string(text, size, at + 1, &escaped)
    return at if at < 0 else colon(text, size, at)


cdef inline Py_ssize_t skip(
    const Char* text, Py_ssize_t size, Py_ssize_t at, int depth
) noexcept nogil:
    """Scan one value of any kind; *depth* containers are open around it."""
    cdef unsigned char closers[MAX_DEPTH]
    cdef int outside = depth
    cdef bint escaped = False
    cdef unsigned int c
    while True:  # at is where a value starts
        c = read(text, size, at)
        if c == c"{" or c == c"[":
            if depth == MAX_DEPTH:
                return ~at
            closers[depth] = <unsigned char>(c + 2)  # "{|}" and "[\\]" in ASCII
            depth += 1
            at = space(text, size, at + 1)
            if read(text, size, at) != c + 2:
                if c == c"{":
                    at = key(text, size, at)
                    if at < 0:
                        return at
                continue
        else:
            at = scalar(text, size, at, &escaped)
            if at < 0 or depth == outside:
                return at
            at = space(text, size, at)
        while True:  # at is the first character after a value, or after "{" or "["
            c = read(text, size, at)
            if c == c",":
                break
            if c != closers[depth - 1]:
                return ~at
            at += 1
            depth -= 1
            if depth == outside:
                return at
            at = space(text, size, at)
        at = space(text, size, at + 1)
        if closers[depth - 1] == c"}":
            at = key(text, size, at)
            if at < 0:
                return at
