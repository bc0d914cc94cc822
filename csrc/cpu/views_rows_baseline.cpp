#define S3H_TABLE kRowsBaseline
#include "views_rows.inc"
