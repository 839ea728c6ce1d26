import { open } from "node:fs/promises";
import { decodeXml, MAX_XML_BYTES } from "../api/xml/xml-reader.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";

/** Reads the file of `--xml`, and of a longer one no more than is needed to refuse it. */
export async function readXmlFile(path: string): Promise<string> {
  try {
    await using file = await open(path);
    const buffer = Buffer.alloc(MAX_XML_BYTES + 1);
    let length = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return decodeXml(buffer.subarray(0, length));
  } catch (error) {
    if (errnoOf(error) === "EISDIR") {
      throw new FleeceError("INVALID_ARGUMENT", `Expected a file with XML, got the directory ${path}`);
    }
    throw fileError(error, "read", path);
  }
}
