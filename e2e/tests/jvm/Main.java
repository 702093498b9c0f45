import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** A Java program that does what its first word says. */
public class Main {
    record Square(int of, int is) {}

    public static void main(String[] words) throws Exception {
        switch (words.length > 0 ? words[0] : "") {
            case "exit" -> System.exit(42);
            case "throw" -> throw new IllegalStateException("bad");
            case "loop" -> { while (true) { Thread.onSpinWait(); } }
            case "deep" -> deep(0);
            case "read" -> System.out.print(new String(System.in.readAllBytes()));
            case "memory" -> {
                List<byte[]> all = new ArrayList<>();
                while (true) { all.add(new byte[1 << 20]); }
            }
            case "hook" -> {
                Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("switched off")));
                System.out.println("ready");
                while (true) { Thread.sleep(50); }
            }
            case "ignore" -> {
                Runtime.getRuntime().addShutdownHook(new Thread(() -> { while (true) { Thread.onSpinWait(); } }));
                System.out.println("ready");
                while (true) { Thread.sleep(50); }
            }
            case "files" -> {
                Files.writeString(Path.of(words[1]), "note");
                System.out.println(Files.readString(Path.of(words[1])));
            }
            case "sockets" -> {
                try (ServerSocket server = new ServerSocket(0)) {
                    Thread client = new Thread(() -> {
                        try (Socket socket = new Socket("127.0.0.1", server.getLocalPort())) {
                            socket.getOutputStream().write(7);
                        } catch (IOException error) {
                            throw new IllegalStateException(error);
                        }
                    });
                    client.start();
                    System.out.println(server.accept().getInputStream().read());
                    client.join();
                }
                new Socket("192.0.2.1", 80);
            }
            case "http" -> {
                HttpServer server = HttpServer.create(new InetSocketAddress(8000), 0);
                server.createContext("/", exchange -> {
                    byte[] body = exchange.getRequestBody().readAllBytes();
                    exchange.sendResponseHeaders(200, body.length == 0 ? -1 : body.length);
                    exchange.getResponseBody().write(body);
                    exchange.close();
                });
                server.start();
                System.out.println("ready");
            }
            case "count" -> {
                HttpServer server = HttpServer.create(new InetSocketAddress(8000), 0);
                server.createContext("/", exchange -> {
                    byte[] body = counted(exchange.getRequestBody().readAllBytes());
                    exchange.sendResponseHeaders(200, body.length);
                    exchange.getResponseBody().write(body);
                    exchange.close();
                });
                server.start();
                System.out.println("ready");
                for (int number = 0; ; number++) {
                    Thread.sleep(200);
                    System.out.println("tick " + number);
                }
            }
            case "process" -> new ProcessBuilder("/bin/ls").start();
            default -> System.out.println(IntStream.range(0, 4)
                .mapToObj(number -> new Square(number, number * number).toString())
                .collect(Collectors.joining(",")) + List.of(words));
        }
    }

    private static int count;

    private static synchronized byte[] counted(byte[] body) {
        count++;
        return (new String(body) + " " + count).getBytes();
    }

    static int deep(int depth) {
        return deep(depth + 1) + 1;
    }
}
