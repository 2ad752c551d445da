/* The format of a program, of what lies between the two stages of a detector: the settings of OP_PROPOSE and
 * OP_REGIONS.
 */
#ifndef CPUPACK_BOXES_H
#define CPUPACK_BOXES_H

#include <stdint.h>

/* OP_PROPOSE: `input` has a score for each anchor, `input2` four offsets, `scales` its four corners in pixels; all side
 * by side, level after level. Of each level the `most` best with a score of at least `least_score` are moved by their
 * offsets and clipped to the image. Those with a side below `least_side` are left out, and those that overlap a better
 * one of their level by more than `most_overlap`. The `kept` best of all levels are the result, four corners each;
 * of equals, the one of the first anchor is the better. Rows after the last box are CPUPACK_NO_BOX.
 */
#define CPUPACK_LEVELS 8
#define CPUPACK_NO_BOX (-1.0f)
struct cpupack_proposals {
    int32_t levels, anchors[CPUPACK_LEVELS]; /* of each level; 0 for those that there are not */
    int32_t most, kept;
    int32_t scores_first, offsets_first; /* where they begin in their buffers */
    float height, width;                 /* pixels of the image */
    float least_score, least_side, most_overlap;
};

/* OP_REGIONS: `input2` has `boxes` boxes of four corners from boxes_first on, `input` a feature map whose channels lie
 * side by side. Of each box with an area from least_area to below_area the result has `rows` x `columns` means of each
 * channel, from the beginning of its buffer; boxes of other areas belong to other layers that write the same buffer. A
 * mean is over `samples` x `samples` places. A row that is no box, with a first corner below 0 or an area that is no
 * finite number, has zeros where `fills` is 1.
 */
struct cpupack_regions {
    int32_t boxes, boxes_first;
    int32_t rows, columns, samples;
    int32_t height, width, channels; /* of the feature map */
    int32_t in_first, row_step, pixel_step;
    int32_t fills;
    float scale; /* pixels of the feature map for one of the image: a power of two */
    float least_area, below_area;
};

/* Bytes of scratch memory that OP_PROPOSE takes: the best of a level as numbers and as boxes, then those of all levels.
 */
static inline int64_t cpupack_proposal_room(const struct cpupack_proposals *of) {
    const int64_t padded = of->most + 64, alone = of->most < of->kept ? of->most : of->kept;
    return 8 * padded + 4 * 6 * padded + of->levels * 4 * 5 * alone;
}

#define CPUPACK_MOST_SAMPLES 4 /* of OP_REGIONS, along one side */
#define CPUPACK_MOST_CELLS 64  /* rows or columns of a box */

#endif
