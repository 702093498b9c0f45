import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;

/** Adds links to the chain of hashes in a file for ever, and says each when it is on the disk. Without a file: in memory, slowly. */
public class Links {
    public static void main(String[] words) throws Exception {
        if (words.length == 0) {
            long hash = 0xcbf29ce484222325L;
            for (long number = 1; ; number++) {
                hash = next(hash, number);
                System.out.printf("%06d %016x%n", number, hash);
                Thread.sleep(50);
            }
        }
        Path path = Path.of(words[0]);
        try (FileChannel file = FileChannel.open(path, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
            FileLock lock = file.tryLock();
            if (lock == null) {
                System.out.println("another one has the file");
                System.exit(3);
            }
            long hash = 0xcbf29ce484222325L;
            long number = 0;
            List<String> lines = Files.readAllLines(path);
            for (String line : lines) {
                hash = next(hash, ++number);
                if (!line.equals(String.format("%06d %016x", number, hash))) {
                    System.out.println("link " + number + " is " + line);
                    System.exit(4);
                }
            }
            file.position(file.size());
            while (true) {
                hash = next(hash, ++number);
                String line = String.format("%06d %016x%n", number, hash);
                ByteBuffer bytes = ByteBuffer.wrap(line.getBytes(StandardCharsets.US_ASCII));
                while (bytes.hasRemaining()) {
                    file.write(bytes);
                }
                file.force(true);
                System.out.print(line);
                System.out.flush();
            }
        }
    }

    private static long next(long hash, long number) {
        return Long.rotateLeft((hash ^ number) * 0x100000001b3L, 29) + number;
    }
}
