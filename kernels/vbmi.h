/* A table of 256 bytes in two permutations. Include inside CPUPACK_VBMI_BEGIN. */
#ifndef CPUPACK_VBMI_H
#define CPUPACK_VBMI_H

INLINE vec look_up_vbmi(vec codes, const struct table256 *table) {
    __m512i low = _mm512_permutex2var_epi8(table->part[0], codes, table->part[1]);
    __m512i high = _mm512_permutex2var_epi8(table->part[2], codes, table->part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

#endif
