// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

#define SYS_clone3 435
#define SYS_exit_group 231

// func clone(args unsafe.Pointer, size uintptr, table unsafe.Pointer) uintptr
// The child never touches the stack, which it shares with its parent.
// R12 survives system calls; only RCX and R11 are clobbered.
TEXT ·clone(SB),NOSPLIT,$0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	table+16(FP), R12
	MOVL	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JZ	next
	MOVQ	AX, ret+24(FP)
	RET
next:
	MOVQ	0(R12), AX
	CMPQ	AX, $-1
	JEQ	stop
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	SYSCALL
	MOVQ	AX, 64(R12)
	MOVQ	56(R12), R13
	CMPQ	R13, $1
	JEQ	advance
	CMPQ	AX, $-4096
	JHI	stop
	CMPQ	R13, $2
	JNE	advance
	CMPQ	AX, $1
	JNE	stop
advance:
	ADDQ	$72, R12
	JMP	next
stop:
	MOVL	$125, DI
	MOVL	$SYS_exit_group, AX
	SYSCALL
	JMP	stop
