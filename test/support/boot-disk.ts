import { writeFile } from "node:fs/promises";

const SECTOR = 512;

/**
 * A disk that boots on a PC: its boot sector reads the next sector, prints the text in it on the first serial port, writes a sector to the disk,
 * and then waits for ever (`halt`) or resets the machine, as a system does that cannot start. Assembled by hand:
 *
 *     xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; push dx
 *     mov ax,0x0201; mov bx,0x7e00; mov cx,2; mov dh,0; int 0x13          ; read sector 2 (INT 13h, AH=2)
 *     mov si,0x7e00
 *     next: lodsb; test al,al; jz done; push ax
 *     mov dx,0x3fd; wait: in al,dx; test al,0x20; jz wait                 ; until the UART takes a byte
 *     pop ax; mov dx,0x3f8; out dx,al; jmp next
 *     done: pop dx; mov ax,0x0301; mov bx,0x7e00; mov cx,4; mov dh,0; int 0x13
 *     halt: hlt; jmp halt                   or   mov al,0xfe; out 0x64,al; hlt
 */
const CODE = [
  "31c08ed88ec08ed0bc007c52",
  "b80102bb007eb90200b600cd13",
  "be007e",
  "ac84c0741050",
  "bafd03eca82074fb",
  "58baf803eeebeb",
  "5ab80103bb007eb90400b600cd13",
];
const ENDS = { halt: "f4ebfd", reset: "b0fee664f4" } as const;

export async function writeBootDisk(
  path: string,
  {
    text,
    end,
    sizeBytes,
  }: { readonly text: string; readonly end: keyof typeof ENDS; readonly sizeBytes: number },
): Promise<void> {
  const disk = Buffer.alloc(sizeBytes);
  Buffer.from([...CODE, ENDS[end]].join(""), "hex").copy(disk);
  disk.writeUInt16LE(0xaa55, SECTOR - 2);
  disk.write(text.slice(0, SECTOR - 1), SECTOR, "latin1");
  await writeFile(path, disk);
}
