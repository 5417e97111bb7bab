// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

#define SYS_clone3 435
#define SYS_exit_group 94

// func clone(args unsafe.Pointer, size uintptr, table unsafe.Pointer) uintptr
// The child never touches the stack, which it shares with its parent.
// The kernel preserves all registers but A0.
TEXT ·clone(SB),NOSPLIT,$0-32
	MOV	args+0(FP), A0
	MOV	size+8(FP), A1
	MOV	table+16(FP), S2
	MOV	$SYS_clone3, A7
	ECALL
	BEQZ	A0, next
	MOV	A0, ret+24(FP)
	RET
next:
	MOV	0(S2), A7
	MOV	$-1, T0
	BEQ	A7, T0, stop
	MOV	8(S2), A0
	MOV	16(S2), A1
	MOV	24(S2), A2
	MOV	32(S2), A3
	MOV	40(S2), A4
	MOV	48(S2), A5
	ECALL
	MOV	A0, 64(S2)
	MOV	56(S2), S3
	MOV	$1, T0
	BEQ	S3, T0, advance
	MOV	$-4095, T0
	BGEU	A0, T0, stop
	MOV	$2, T0
	BNE	S3, T0, advance
	MOV	$1, T0
	BNE	A0, T0, stop
advance:
	ADD	$72, S2
	JMP	next
stop:
	MOV	$125, A0
	MOV	$SYS_exit_group, A7
	ECALL
	JMP	stop
