// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

#define SYS_clone3 435
#define SYS_exit_group 94

// func clone(args unsafe.Pointer, size uintptr, table unsafe.Pointer) uintptr
// The child never touches the stack, which it shares with its parent.
// The kernel preserves all registers but R0.
TEXT ·clone(SB),NOSPLIT,$0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	table+16(FP), R19
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, next
	MOVD	R0, ret+24(FP)
	RET
next:
	MOVD	0(R19), R8
	CMN	$1, R8
	BEQ	stop
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	40(R19), R4
	MOVD	48(R19), R5
	SVC
	MOVD	R0, 64(R19)
	MOVD	56(R19), R20
	CMP	$1, R20
	BEQ	advance
	CMN	$4095, R0
	BHS	stop
	CMP	$2, R20
	BNE	advance
	CMP	$1, R0
	BNE	stop
advance:
	ADD	$72, R19
	B	next
stop:
	MOVD	$125, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	stop
