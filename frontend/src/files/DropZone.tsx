import { Button, Group, Text } from "@mantine/core";
import { useRef, useState, type DragEvent, type ReactNode } from "react";
import type { IncomingFile } from "@/api/uploads";
import { chosenFiles, droppedFiles } from "./dropped";
import classes from "./DropZone.module.css";

interface DropZoneProps {
  onFiles: (files: IncomingFile[]) => void;
  /** What may be dropped. */
  children: ReactNode;
  /** One file is enough: no button for folders. */
  single?: boolean;
  disabled?: boolean;
}

/** A place to drop files or a folder; buttons do the same without dragging. */
export function DropZone({ onFiles, children, single = false, disabled = false }: DropZoneProps) {
  const [over, setOver] = useState(false);
  const folder = useRef<HTMLInputElement>(null);
  const files = useRef<HTMLInputElement>(null);
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    if (!disabled) void droppedFiles(event.dataTransfer).then(onFiles);
  };
  const drag = (event: DragEvent) => {
    event.preventDefault();
    setOver(true);
  };
  return (
    <div className={`${classes.zone} ${over ? classes.over : ""}`} onDragOver={drag} onDragLeave={() => setOver(false)} onDrop={drop} data-testid="drop-zone">
      <Text size="sm" mb="xs">{children}</Text>
      <Group justify="center" gap="xs">
        {!single && <Button variant="default" disabled={disabled} onClick={() => folder.current?.click()}>Choose a folder</Button>}
        <Button variant="default" disabled={disabled} onClick={() => files.current?.click()}>{single ? "Choose a file" : "Choose files"}</Button>
      </Group>
      {/* React does not know the attribute that makes a dialog choose folders. */}
      <input ref={folder} className={classes.input} type="file" multiple data-testid="choose-folder" {...{ webkitdirectory: "" }} onChange={(event) => onFiles(chosenFiles(event.currentTarget.files))} />
      <input ref={files} className={classes.input} type="file" multiple={!single} data-testid="choose-files" onChange={(event) => onFiles(chosenFiles(event.currentTarget.files))} />
    </div>
  );
}
