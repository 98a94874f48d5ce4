/* The seconds that a process spends in calls of MPI, waiting included: preloaded, it stands between MPI and its callers. */
#include <mpi.h>

static double seconds;

double mpi_seconds(void) { return seconds; }

#define TIMED(name, parameters, arguments)                                                                             \
    int name parameters {                                                                                              \
        double start = PMPI_Wtime();                                                                                   \
        int code = P##name arguments;                                                                                  \
        seconds += PMPI_Wtime() - start;                                                                               \
        return code;                                                                                                   \
    }

TIMED(MPI_Allgather, (const void *a, int b, MPI_Datatype c, void *d, int e, MPI_Datatype f, MPI_Comm g),
      (a, b, c, d, e, f, g))
TIMED(MPI_Allgatherv,
      (const void *a, int b, MPI_Datatype c, void *d, const int e[], const int f[], MPI_Datatype g, MPI_Comm h),
      (a, b, c, d, e, f, g, h))
TIMED(MPI_Allreduce, (const void *a, void *b, int c, MPI_Datatype d, MPI_Op e, MPI_Comm f), (a, b, c, d, e, f))
TIMED(MPI_Alltoall, (const void *a, int b, MPI_Datatype c, void *d, int e, MPI_Datatype f, MPI_Comm g),
      (a, b, c, d, e, f, g))
TIMED(MPI_Alltoallv,
      (const void *a, const int b[], const int c[], MPI_Datatype d, void *e, const int f[], const int g[],
       MPI_Datatype h, MPI_Comm i),
      (a, b, c, d, e, f, g, h, i))
TIMED(MPI_Barrier, (MPI_Comm a), (a))
TIMED(MPI_Bcast, (void *a, int b, MPI_Datatype c, int d, MPI_Comm e), (a, b, c, d, e))
TIMED(MPI_Gatherv,
      (const void *a, int b, MPI_Datatype c, void *d, const int e[], const int f[], MPI_Datatype g, int h, MPI_Comm i),
      (a, b, c, d, e, f, g, h, i))
TIMED(MPI_Iprobe, (int a, int b, MPI_Comm c, int *d, MPI_Status *e), (a, b, c, d, e))
TIMED(MPI_Irecv, (void *a, int b, MPI_Datatype c, int d, int e, MPI_Comm f, MPI_Request *g), (a, b, c, d, e, f, g))
TIMED(MPI_Isend, (const void *a, int b, MPI_Datatype c, int d, int e, MPI_Comm f, MPI_Request *g),
      (a, b, c, d, e, f, g))
TIMED(MPI_Recv, (void *a, int b, MPI_Datatype c, int d, int e, MPI_Comm f, MPI_Status *g), (a, b, c, d, e, f, g))
TIMED(MPI_Reduce, (const void *a, void *b, int c, MPI_Datatype d, MPI_Op e, int f, MPI_Comm g), (a, b, c, d, e, f, g))
TIMED(MPI_Rsend, (const void *a, int b, MPI_Datatype c, int d, int e, MPI_Comm f), (a, b, c, d, e, f))
TIMED(MPI_Scatterv,
      (const void *a, const int b[], const int c[], MPI_Datatype d, void *e, int f, MPI_Datatype g, int h, MPI_Comm i),
      (a, b, c, d, e, f, g, h, i))
TIMED(MPI_Send, (const void *a, int b, MPI_Datatype c, int d, int e, MPI_Comm f), (a, b, c, d, e, f))
TIMED(MPI_Sendrecv,
      (const void *a, int b, MPI_Datatype c, int d, int e, void *f, int g, MPI_Datatype h, int i, int j, MPI_Comm k,
       MPI_Status *l),
      (a, b, c, d, e, f, g, h, i, j, k, l))
TIMED(MPI_Test, (MPI_Request * a, int *b, MPI_Status *c), (a, b, c))
TIMED(MPI_Testall, (int a, MPI_Request b[], int *c, MPI_Status d[]), (a, b, c, d))
TIMED(MPI_Wait, (MPI_Request * a, MPI_Status *b), (a, b))
TIMED(MPI_Waitall, (int a, MPI_Request b[], MPI_Status c[]), (a, b, c))
TIMED(MPI_Waitany, (int a, MPI_Request b[], int *c, MPI_Status *d), (a, b, c, d))
